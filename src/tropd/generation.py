"""Teacher responses for a data set's prompts, where guidance takes its prefixes from."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from .response_file import COLUMNS, GenerationSettings, Prompts, ResponseFile, Row
from .sampling import sample, until_eos
from .teacher.context import TeacherContexts


@dataclass(frozen=True)
class Summary:
    """What a file of responses holds.

    Attributes:
        responses: how many.
        tokens: of all responses, without the ends of sequence.
        ended: responses that the teacher ended; the others were cut at `max_new_tokens`.
        empty: responses without a token.
    """

    responses: int
    tokens: int
    ended: int
    empty: int


def read_prompts(rows: Sequence[Row], places: Sequence[str], tokenizer: Any) -> Prompts:
    """Token ids of each row's `teacher_prompt`, else its `prompt`: text as it stands, messages through the template.

    Args:
        rows: the data set's.
        places: `file:line` of each.
        tokenizer: the teacher's.

    Raises:
        ValueError: rows that have a response already, an empty prompt, or messages without a chat template.
    """
    taken = [name for name in COLUMNS if any(name in row for row in rows)]
    if taken:
        raise ValueError(f"the data has a column {taken[0]} already, which would be replaced. Leave that column out.")
    if not rows:
        raise ValueError("the data has no rows, so there is nothing to answer.")
    for row, place in zip(rows, places, strict=True):
        prompt = row["prompt"] if row.get("teacher_prompt") is None else row["teacher_prompt"]
        if not isinstance(prompt, str) and not tokenizer.chat_template:
            raise ValueError(
                f"{place}: the prompt is a list of messages, and the teacher's tokenizer has no chat template to write "
                "them with. Give text, or take a teacher with a template."
            )
    contexts = TeacherContexts(tokenizer, as_student=False).of(rows, [[]] * len(rows))
    empty = [place for place, context in zip(places, contexts, strict=True) if not context]
    if empty:
        raise ValueError(f"{_some(empty)}: an empty prompt, after which nothing predicts a first token. Remove it.")
    return Prompts(rows, places, contexts)


def check_fit(prompts: Prompts, settings: GenerationSettings, config: Any) -> None:
    """Refuse prompts that the teacher cannot read, or that leave no room for `max_new_tokens`; `config` is its own.

    Raises:
        ValueError: naming the rows.
    """
    text = config.get_text_config(decoder=True)
    highest = max(max(context) for context in prompts.contexts)
    if highest >= text.vocab_size:
        raise ValueError(
            f"the tokenizer in {settings.teacher} gives token id {highest}, but the teacher's vocabulary has "
            f"{text.vocab_size} entries: tokenizer and model do not belong together."
        )
    positions = getattr(text, "max_position_embeddings", None)
    if positions is None:
        return
    room = positions - settings.max_new_tokens
    if room < min(map(len, prompts.contexts)):
        raise ValueError(
            f"max_new_tokens is {settings.max_new_tokens}, but the teacher's context has {positions} tokens, prompt "
            f"included, and the longest prompt has {max(map(len, prompts.contexts))}. Lower max_new_tokens."
        )
    pairs = zip(prompts.places, prompts.contexts, strict=True)
    long = [f"{place} ({len(context)} tokens)" for place, context in pairs if len(context) > room]
    if long:
        raise ValueError(
            f"{_some(long)}: too long. The teacher's context of {positions} tokens leaves {room} for a prompt when "
            f"max_new_tokens is {settings.max_new_tokens}. Lower max_new_tokens, or remove the long prompts."
        )


def generate(model: PreTrainedModel, tokenizer: Any, file: ResponseFile, advance: Callable[[int], None]) -> int:
    """Write the responses that `file` misses; returns the number of their tokens.

    A batch depends on the settings, its number and its prompts alone, and the global generators stay as they were.

    Args:
        model: the teacher; put in evaluation mode.
        tokenizer: the teacher's.
        file: the output.
        advance: told how many responses were added.
    """
    model.eval()
    eos_ids, tokens = ending_ids(model.generation_config, tokenizer), 0
    for number, rows in file.missing_batches():
        seed = _batch_seed(file.settings.seed, number)
        try:
            responses = _sample(
                model, [file.prompts.contexts[row] for row in rows], file.settings, tokenizer, eos_ids, seed
            )
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"batch {number} does not fit on {model.device} ({error}). Use a smaller batch_size, and another "
                "output file, since batches belong to their file."
            ) from error
        records = [
            {**file.prompts.rows[row], **_as_columns(response, tokenizer, eos_ids)}
            for row, response in zip(rows, responses, strict=True)
        ]
        file.append(records)
        tokens += sum(len(record["teacher_response"] or []) for record in records)
        advance(len(records))
    return tokens


def summarise(file: ResponseFile) -> Summary:
    """Count what is on the disk."""
    count = tokens = ended = empty = 0
    for record in file.records():
        count += 1
        tokens += len(record["teacher_response"] or [])
        ended += record["teacher_response_ended"]
        empty += record["teacher_response"] is None
    return Summary(count, tokens, ended, empty)


def ending_ids(generation_config: Any, tokenizer: Any) -> list[int]:
    """Every id that ends a response: those of the generation settings, and the tokenizer's."""
    named = generation_config.eos_token_id
    ids = [*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id]
    ids = sorted({token for token in ids if token is not None})
    if not ids:
        raise ValueError(
            "neither the teacher's generation_config.json nor its tokenizer names an end-of-sequence token, so no "
            "response would ever end. Set eos_token_id in generation_config.json."
        )
    return ids


def _sample(
    model: PreTrainedModel,
    contexts: list[list[int]],
    settings: GenerationSettings,
    tokenizer: Any,
    eos_ids: list[int],
    seed: int,
) -> list[list[int]]:
    on_gpu = model.device.type == "cuda"
    with torch.random.fork_rng(devices=[model.device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(model.device):
                torch.cuda.manual_seed(seed)
        return sample(
            model,
            contexts,
            max_new_tokens=settings.max_new_tokens,
            eos_ids=eos_ids,
            pad_id=eos_ids[0],  # the tokenizer's own may lie beyond the embeddings
            temperature=settings.temperature,
            vocab_limit=max(tokenizer.get_vocab().values()) + 1,
        )


def _batch_seed(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{number}".encode()).digest()[:7])


def _as_columns(response: list[int], tokenizer: Any, eos_ids: list[int]) -> Row:
    """The columns of one response; `None` for the ids of an empty one, which a prefix cannot be taken from."""
    ids = until_eos(response, eos_ids)
    return dict(zip(COLUMNS, (ids or None, tokenizer.decode(ids), len(ids) < len(response)), strict=True))


def _some(places: Sequence[str], most: int = 5) -> str:
    """The first places of a long list.

    >>> _some(["a:1", "a:2", "a:3"], most=2)
    'a:1, a:2 and 1 more'
    """
    more = f" and {len(places) - most} more" if len(places) > most else ""
    return ", ".join(places[:most]) + more
