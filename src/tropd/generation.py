"""Teacher responses for a data set's prompts, where guidance takes its prefixes from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from jinja2 import TemplateError

from .data.refusals import BadRow, refusal
from .engines.drawing import Drawing, Writer
from .engines.transformers import TransformersWriter, enough_memory
from .models.chat_templates import render
from .models.files import ModelFiles
from .models.sampling import until_eos
from .response_file import COLUMNS, REWARD, GenerationSettings, Prompts, ResponseFile, Row
from .rollout.engine.noise import RESPONSE_STREAM, AddressedNoise
from .run.tools import NO_TOOLS, RunTools
from .teacher.context import check_renders_tools, text_ids, tools_of


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
    room = positions - settings.max_new_tokens
    if room < min(map(len, prompts.contexts)):
        raise ValueError(
            f"max_new_tokens is {settings.max_new_tokens}, but the teacher's context has {positions} tokens, prompt "
            f"included, and the longest prompt has {max(map(len, prompts.contexts))}. Lower max_new_tokens."
        )
    pairs = zip(prompts.places, prompts.contexts, strict=True)
    long = [BadRow(place, f"the prompt has {len(context)} tokens") for place, context in pairs if len(context) > room]
    if long:
        raise refusal(
            long,
            len(prompts.rows),
            f"The teacher's context of {positions} tokens leaves {room} for a prompt when max_new_tokens is "
            f"{settings.max_new_tokens}. Lower max_new_tokens, or remove the long prompts.",
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
