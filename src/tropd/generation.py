"""Teacher responses for a data set's prompts, where guidance takes its prefixes from, and the file of them."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from .data.refusals import BadRow, refusal
from .engines.batch_file import BatchFile
from .engines.drawing import Drawing, Writer
from .engines.transformers import TransformersWriter, enough_memory
from .models.chat_templates import render
from .models.files import ModelFiles
from .models.sampling import until_eos
from .rollout.engine.noise import RESPONSE_STREAM, AddressedNoise
from .run.tools import NO_TOOLS, RunTools
from .teacher.context import check_renders_tools, text_ids, tools_of

Row = dict[str, Any]

COLUMNS = ("teacher_response", "teacher_response_text", "teacher_response_ended")
"""What is added to a row."""
REWARD = "teacher_reward"
"""Added beside them to an episode in an environment that judges it."""


@dataclass(frozen=True)
class GenerationSettings:
    """What decides the responses, as `tropd generate --help` explains it; a file is continued only with the same."""

    teacher: str
    max_new_tokens: int = 512
    temperature: float = 1.0
    responses_per_prompt: int = 1
    batch_size: int = 16
    seed: int = 42
    dtype: str = "auto"
    engine: str = "hf"
    max_tool_result_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "responses_per_prompt", "batch_size", "max_tool_result_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(
                f"temperature is {self.temperature:g}; responses are sampled, and guidance should follow the teacher's "
                "own distribution, which is temperature 1. Choose a number above 0; a small one such as 0.01 "
                "is nearly greedy."
            )


@dataclass(frozen=True)
class Prompts:
    """The rows of a data set with their `file:line`, ready to be answered, and the token ids that the teacher reads."""

    rows: Sequence[Row]
    places: Sequence[str]
    contexts: Sequence[list[int]]

    def sha256(self) -> str:
        """Of everything that is answered and copied."""
        digest = hashlib.sha256()
        for row, place, context in zip(self.rows, self.places, self.contexts, strict=True):
            digest.update(f"{as_json(row, place)}\n{context}\n".encode())
        return digest.hexdigest()


def as_json(row: Row, place: str) -> str:
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{place} has a value that JSON cannot represent ({error}). Remove its column.") from error


class ResponseFile(BatchFile):
    """The output, and beside it `<name>.settings.json`; each row has its responses side by side."""

    def __init__(self, path: str | Path, prompts: Prompts, settings: GenerationSettings):
        path = Path(path)
        self.prompts, self.settings = prompts, settings
        described = {**asdict(settings), "num_prompts": len(prompts.rows), "prompts_sha256": prompts.sha256()}
        total = len(prompts.rows) * settings.responses_per_prompt
        super().__init__(path, path.with_name(path.name + ".settings.json"), described, total, settings.batch_size)

    def rows(self, lines: Sequence[int]) -> list[int]:
        """Which row each of these lines answers."""
        return [line // self.settings.responses_per_prompt for line in lines]

    def records(self) -> Iterator[Row]:
        """What is on the disk."""
        if self.done:
            with self.path.open(encoding="utf-8") as stream:
                yield from map(json.loads, stream)

    def is_expected(self, record: Row, line: int) -> bool:
        """See `BatchFile`: it is a row with its response."""
        (number,) = self.rows([line])
        row = json.loads(as_json(self.prompts.rows[number], self.prompts.places[number]))
        return {name: value for name, value in record.items() if name not in (*COLUMNS, REWARD)} == row


@dataclass(frozen=True)
class Summary:
    """What a file of responses holds; tokens without ends of sequence, messages and rewards of episodes."""

    responses: int
    tokens: int
    ended: int
    empty: int
    messages: int = 0
    rewards: tuple[float, ...] = ()


def read_prompts(
    rows: Sequence[Row], places: Sequence[str], tokenizer: Any, template_kwargs: dict[str, Any] | None = None
) -> Prompts:
    """Token ids of each row's `teacher_prompt`, else its `prompt`: text as it stands, messages through the template,
    with the row's `tools`.

    Raises:
        ValueError: rows that have a response already, an empty prompt, or messages or tools that the chat template
            refuses.
    """
    taken = [name for name in COLUMNS if any(name in row for row in rows)]
    if taken:
        raise ValueError(f"the data has a column {taken[0]}, which would be overwritten. Remove that column.")
    if not rows:
        raise ValueError("the data has no rows, so there is nothing to answer.")
    contexts = _tokenize(rows, places, tokenizer, template_kwargs or {})
    empty = [BadRow(place, "the prompt is empty") for place, ids in zip(places, contexts, strict=True) if not ids]
    if empty:
        raise refusal(empty, len(rows), "Nothing predicts the first token after an empty prompt. Remove these rows.")
    return Prompts(rows, places, contexts)


def _tokenize(
    rows: Sequence[Row], places: Sequence[str], tokenizer: Any, template_kwargs: dict[str, Any]
) -> list[list[int]]:
    """Text with the tokenizer's special tokens, messages with those of the template alone; each kind in one call."""
    prompts = [row["prompt"] if row.get("teacher_prompt") is None else row["teacher_prompt"] for row in rows]
    is_text = [isinstance(prompt, str) for prompt in prompts]
    if not all(is_text) and not tokenizer.chat_template and "chat_template" not in template_kwargs:
        raise ValueError(
            f"{places[is_text.index(False)]}: the prompt is a list of messages, but the teacher's tokenizer has no "
            "chat template to render them. Give text, or use a teacher with a template."
        )
    rendered = _render(prompts, [tools_of(row) for row in rows], places, tokenizer, template_kwargs)
    contexts: list[list[int]] = [[]] * len(prompts)
    for kind in (True, False):
        numbers = [number for number, text in enumerate(is_text) if text is kind]
        if numbers:
            texts = [rendered[number] for number in numbers]
            ids = text_ids(tokenizer, texts) if kind else tokenizer(texts, add_special_tokens=False)["input_ids"]
            for number, row in zip(numbers, ids, strict=True):
                contexts[number] = list(row)
    return contexts


def _render(
    prompts: Sequence[Any], tools: Sequence[Any], places: Sequence[str], tokenizer: Any, template_kwargs: dict[str, Any]
) -> list[str]:
    texts, bad = [], []
    for prompt, given, place in zip(prompts, tools, places, strict=True):
        if isinstance(prompt, str):
            texts.append(prompt)
            continue
        if given:
            check_renders_tools(tokenizer, template_kwargs)
        options = template_kwargs | ({"tools": given} if given else {})
        try:
            texts.append(render(tokenizer, prompt, add_generation_prompt=True, tokenize=False, **options))
        except TemplateError as error:
            bad.append(BadRow(place, f"the teacher's chat template refuses the messages ({error})"))
    if bad:
        raise refusal(
            bad, len(prompts), "Write the messages in the form that the template expects, or remove these rows."
        )
    return texts


def check_fit(prompts: Prompts, settings: GenerationSettings, teacher: ModelFiles) -> None:
    """Refuse prompts that the teacher cannot read or that leave no room to respond, and a teacher without an end."""
    if not teacher.eos_ids:
        raise ValueError(
            "neither the teacher's generation_config.json nor its tokenizer names an end-of-sequence token, so no "
            "response would ever end. Set eos_token_id in generation_config.json."
        )
    highest = max(max(context) for context in prompts.contexts)
    if highest >= teacher.head_rows:
        raise ValueError(
            f"the tokenizer in {settings.teacher} gives token id {highest}, but the teacher's vocabulary has "
            f"{teacher.head_rows} entries: tokenizer and model do not match."
        )
    positions = teacher.context_length
    if positions is None:
        return
    room, longest = positions - settings.max_new_tokens, max(map(len, prompts.contexts))
    lower = f"Set it to at most {positions - longest}" if longest < positions else "Lower it"
    if room < min(map(len, prompts.contexts)):
        raise ValueError(
            f"max_new_tokens is {settings.max_new_tokens}, but the teacher's context has {positions} tokens, prompt "
            f"included, and the longest prompt has {longest}. {lower}."
        )
    pairs = zip(prompts.places, prompts.contexts, strict=True)
    long = [BadRow(place, f"the prompt has {len(context)} tokens") for place, context in pairs if len(context) > room]
    if long:
        raise refusal(
            long,
            len(prompts.rows),
            f"The teacher's context of {positions} tokens leaves {room} for a prompt when max_new_tokens is "
            f"{settings.max_new_tokens}. {lower}, or remove the long prompts.",
        )


def generate(
    writer: Writer,
    teacher: ModelFiles,
    file: ResponseFile,
    advance: Callable[[int], None],
    tools: RunTools = NO_TOOLS,
    template: dict[str, Any] | None = None,
) -> int:
    """Write the responses that `file` misses; returns the number of their tokens.

    What a token is drawn with depends on the seed, the line of its response in the file and the position alone, and the
    global generators stay as they were.
    """
    tokens = 0
    for lines in file.missing_batches():
        write = partial(_episodes, tools=tools, template=template) if tools.are_there else _responses
        records, count = write(writer, teacher, file, file.rows(lines))
        file.append(records)
        tokens += count
        advance(len(records))
    return tokens


def _responses(writer: Writer, teacher: ModelFiles, file: ResponseFile, rows: Sequence[int]) -> tuple[list[Row], int]:
    tokenizer, eos_ids = teacher.tokenizer, teacher.eos_ids
    drawing = Drawing(
        max_new_tokens=file.settings.max_new_tokens,
        eos_ids=tuple(eos_ids),
        vocab_limit=max(tokenizer.get_vocab().values()) + 1,
        temperature=file.settings.temperature,
    )
    places = [(file.done + number, 0) for number in range(len(rows))]
    noise = AddressedNoise(seed=file.settings.seed % 2**64, step=0, stream=RESPONSE_STREAM, places=places)
    responses = writer.write([file.prompts.contexts[row] for row in rows], noise, drawing)
    records = [
        {**file.prompts.rows[row], **_as_columns(response, tokenizer, eos_ids)}
        for row, response in zip(rows, responses, strict=True)
    ]
    return records, sum(len(record["teacher_response"] or []) for record in records)


def _episodes(
    writer: Writer,
    teacher: ModelFiles,
    file: ResponseFile,
    rows: Sequence[int],
    *,
    tools: RunTools,
    template: dict[str, Any] | None,
) -> tuple[list[Row], int]:
    from .evaluation.episodes import play

    chosen = [file.prompts.rows[row] for row in rows]
    asked = [row if row.get("teacher_prompt") is None else row | {"prompt": row["teacher_prompt"]} for row in chosen]
    assert isinstance(writer, TransformersWriter)  # others are refused with tools
    with enough_memory(len(rows), writer.model):
        episodes = play(
            writer.model,
            teacher.tokenizer,
            asked,
            environment=tools.environments,
            functions=tools.functions,
            eos_ids=teacher.eos_ids,
            max_length=file.settings.max_new_tokens,
            temperature=file.settings.temperature,
            seed=file.settings.seed % 2**64,
            first_row=file.done,
            reply_tokens=file.settings.max_tool_result_tokens,
            template=template,
        )
    records = []
    for row, episode in zip(chosen, episodes, strict=True):
        ended = not episode.is_cut and bool(episode.response) and episode.response[-1] in teacher.eos_ids
        columns = (episode.messages, teacher.tokenizer.decode(episode.response), ended)
        judged = {} if episode.reward is None else {REWARD: episode.reward}
        records.append({**row, **dict(zip(COLUMNS, columns, strict=True)), **judged})
    return records, sum(told.count(False) for told in (episode.external for episode in episodes))


def summarise(file: ResponseFile) -> Summary:
    """Count what is on the disk."""
    count = tokens = ended = empty = messages = 0
    rewards = []
    for record in file.records():
        count += 1
        response = record["teacher_response"] or []
        is_episode = bool(response) and isinstance(response[0], dict)
        messages += len(response) if is_episode else 0
        tokens += 0 if is_episode else len(response)
        ended += record["teacher_response_ended"]
        empty += record["teacher_response"] is None
        rewards += [record[REWARD]] if REWARD in record else []
    return Summary(count, tokens, ended, empty, messages, tuple(rewards))


def _as_columns(response: list[int], tokenizer: Any, eos_ids: list[int]) -> Row:
    """The columns of one response; `None` for the ids of an empty one, which a prefix cannot be taken from."""
    ids = until_eos(response, eos_ids)
    return dict(zip(COLUMNS, (ids or None, tokenizer.decode(ids), len(ids) < len(response)), strict=True))
