"""Episodes of a model with tools or in an environment, outside of a training step: how often it succeeds, and how.

The turns are those of a training step: the host's parser reads the calls, its templates write the replies, and keys and
values are kept between turns.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace
from typing import Any

import trl.trainer.grpo_trainer as host

from ..messages import NO_TOOL, is_unanswered
from ..models.sampling import sample
from ..rollout.engine.noise import BENCHMARK_STREAM, AddressedNoise, decoding_through
from ..rollout.engine.slots import KeptStates
from ..rollout.replies import PlainReplies
from ..teacher.context import Row, message_ids


@dataclass
class Episode:
    prompt_ids: list[int]  # what the model read first
    environment: Any = None
    tools: dict[str, Callable] = field(default_factory=dict)
    response: list[int] = field(default_factory=list)  # everything after it, including what tools said
    external: list[bool] = field(default_factory=list)  # for each token of it, did a tool say it?
    # everything after the prompt, as messages: the model's, with their calls, and the tools'
    messages: list[dict[str, Any]] = field(default_factory=list)
    calls: int = 0  # how many tools were called
    failures: int = 0  # calls that raised something, or that named no tool
    reward: float | None = None  # the environment's own, at the end; `None` where it gives none

    @property
    def turns(self) -> int:
        """How many the model wrote."""
        return sum(message["role"] == "assistant" for message in self.messages)

    @property
    def is_cut(self) -> bool:
        """Does it end in a call that nobody answered?"""
        return is_unanswered(self.messages)


def play(
    model: Any,
    tokenizer: Any,  # the model's, with a chat template that renders tools and a `response_template` that reads calls
    rows: Sequence[Row],  # with `prompt`, as messages; an environment's `reset` gets all columns
    *,
    # makes one for each row; of several by name, a row's column `environment` says which
    environment: Callable[[], Any] | Mapping[str, Callable[[], Any]] | None = None,
    functions: Sequence[Callable] = (),  # tools beside its methods
    eos_ids: Sequence[int],  # every id that ends a turn
    max_length: int,  # tokens of an episode after its prompt, replies included
    max_turns: int = 64,  # of an episode
    turn_tokens: int | None = None,  # longest turn; `max_length` by default
    temperature: float = 1.0,  # of the softmax; 0 takes the likeliest token
    seed: int = 0,  # of the draws
    first_row: int = 0,  # number of the first row, for the draws
    reply_tokens: int | None = None,  # longer replies of tools are cut, as `max_tool_result_tokens` does in training
    template: Mapping[str, Any] | None = None,  # arguments of the chat template, as `{"enable_thinking": False}`
) -> list[Episode]:
    """One episode of each row, all of them turn by turn together; a row's draws depend on nothing but its number."""
    has_parser = any(getattr(tokenizer, name, None) is not None for name in ("response_template", "response_schema"))
    parser = tokenizer if has_parser else host.add_response_schema(tokenizer)
    options = dict(template or {})
    if not host.is_chat_template_prefix_preserving(parser):  # as the host's trainer does
        options["chat_template"] = host.get_training_chat_template(parser)
    episodes = [_begin(parser, row, environment, functions, options) for row in rows]
    live, replies = list(range(len(rows))), Replies(parser, PlainReplies(parser, reply_tokens), options)
    kept = KeptStates()
    for _ in range(max_turns):
        if not live:
            break
        _write(model, parser, episodes, live, (eos_ids, max_length, turn_tokens, temperature, (seed, first_row)), kept)
        live = [n for n in live if _answer(replies, episodes[n], max_length)]
    for episode in episodes:
        judge = getattr(episode.environment, "get_reward", None)
        reward = None if judge is None else _settled(judge())
        episode.reward = None if reward is None else float(reward)
    return episodes


def _begin(
    tokenizer: Any, row: Row, environment: Any, functions: Sequence[Callable], template: dict[str, Any]
) -> Episode:
    make = environment[row["environment"]] if isinstance(environment, Mapping) else environment
    prompt, made = list(row["prompt"]), make() if make else None
    given = {name: value for name, value in row.items() if name != "environment" or make is environment}
    if made is not None and (observation := made.reset(**given)) is not None:
        prompt[-1] = prompt[-1] | {"content": prompt[-1]["content"] + observation}
    names = [name for name in dir(type(made)) if made is not None and not name.startswith("_") and name not in NO_TOOL]
    tools = [*functions, *(getattr(made, name) for name in names if callable(getattr(made, name)))]
    ids = message_ids(tokenizer, prompt, tools or None, **template)
    return Episode(ids, made, {str(tool.__name__): tool for tool in tools})


def _write(
    model: Any, tokenizer: Any, episodes: list[Episode], live: list[int], how: tuple[Any, ...], kept: KeptStates
) -> None:
    eos_ids, max_length, turn_tokens, temperature, (seed, first_row) = how
    contexts = [[*episodes[n].prompt_ids, *episodes[n].response] for n in live]
    room = [max_length - len(episodes[n].response) for n in live]
    places = [(first_row + n, len(episodes[n].response)) for n in live]
    with decoding_through(model, AddressedNoise(seed, 0, BENCHMARK_STREAM, places, kept=kept)):
        texts = sample(
            model,
            contexts,
            max_new_tokens=min(max(room), turn_tokens or max_length),
            eos_ids=eos_ids,
            pad_id=tokenizer.pad_token_id,
            temperature=temperature,
            vocab_limit=max(tokenizer.get_vocab().values()) + 1,
        )
    for n, context, ids, most in zip(live, contexts, texts, room, strict=True):
        episode, turn = episodes[n], ids[:most]
        episode.response += turn
        episode.external += [False] * len(turn)
        told: list[Any] = list(episode.tools.values())
        episode.messages.append(host.parse_response(tokenizer, turn, prefix=context, tools=told))


def _answer(render: "Replies", episode: Episode, max_length: int) -> bool:
    """Call what the last turn calls, and put the replies after it where there is room; does the episode go on?"""
    replies: list[dict[str, Any]] = []
    late: list[dict[str, Any]] = []
    for call in episode.messages[-1].get("tool_calls") or []:
        episode.calls += 1
        function, said = call.get("function", {}), None
        try:
            said = episode.tools[function["name"]](**function["arguments"])
            reply = _settled(said)
            content = reply if isinstance(reply, list) else str(reply)  # a list of blocks, as the host has it
        except Exception as error:  # the host tells the model so, too
            episode.failures += 1
            content = str({"error": str(error)})
        told = late if inspect.isawaitable(said) else replies  # as the host has it, coroutines' come last
        told.append({"role": "tool", "name": function.get("name", "unknown"), "content": content})
    replies += late
    if not replies:
        return False
    ids = render.ids(replies)
    if len(episode.response) + len(ids) >= max_length:
        return False
    episode.messages += replies
    episode.response += ids
    episode.external += [True] * len(ids)
    return True


def _settled(said: Any) -> Any:
    """What a tool or a reward says, awaited if it is a coroutine."""

    async def settle(awaited: Awaitable[Any]) -> Any:
        return await awaited

    return asyncio.run_coroutine_threadsafe(settle(said), _loop()).result() if inspect.isawaitable(said) else said


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """The event loop of every coroutine, as in training: what a tool keeps open belongs to the loop that opened it."""
    _, loop, _ = host.start_event_loop_in_daemon()
    return loop


@dataclass(frozen=True)
class Replies:
    """What stands between a turn and the next, as the host's trainer renders it; no reply can forge a turn."""

    tokenizer: Any
    plain: PlainReplies
    template: Mapping[str, Any]

    def ids(self, replies: Sequence[dict[str, Any]]) -> list[int]:
        """The tokens after a turn's calls."""
        trainer = SimpleNamespace(
            processing_class=self.tokenizer,
            _tokenizer=self.tokenizer,
            _is_vlm=False,
            chat_template=self.template.get("chat_template"),
            chat_template_kwargs={name: value for name, value in self.template.items() if name != "chat_template"},
        )

        def render(messages: Any) -> list[int]:
            return list(host.GRPOTrainer._get_tool_suffix_ids(trainer, list(messages)))  # type: ignore[arg-type]

        return self.plain.tokenize(trainer, replies, render)
