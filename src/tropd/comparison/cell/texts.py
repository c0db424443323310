"""Where a setting's models and prompts come from, and the record that its runs read."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from ...atomic_files import write_whole
from ...evaluation.exact import sample_responses
from ...models.files import read_model_files
from ...proving_ground.domains import records
from ...teacher.context import text_ids
from ..plan import SPLITS, Plan, Setting, model_folder

TEXTS_AT_ONCE = 64
TEACHERS = "teachers"
"""Folder of a setting's own copies of its teachers."""


@dataclass(frozen=True)
class Text:
    """A prompt and its teacher's response. By hand: `Text("1+2=", [5, 13, 6, 14], [7, 2], "mathematics")`."""

    prompt: Any  # text or messages
    prompt_ids: list[int]  # as the student sees it
    response_ids: list[int]  # the teacher's, at temperature 1; prefixes are cut from it
    part: str  # its domain, or what else the setting's prompts are
    # what else the row has, such as what an environment is made of
    columns: dict[str, Any] = field(default_factory=dict)
    # the teacher's messages, where the response has several turns
    episode: list[dict[str, Any]] = field(default_factory=list)
    external: list[bool] = field(default_factory=list)  # for each token of such a response, did a tool say it?

    def as_row(self) -> dict[str, Any]:
        """As the trainer's data set has it."""
        return {"prompt": self.prompt, "teacher_response": self.episode or self.response_ids, **self.columns}

    @property
    def turn_lengths(self) -> list[int]:
        """Tokens of each turn of the teacher's, endings included."""
        marks = self.external or [False] * len(self.response_ids)
        return [len(list(run)) for told, run in groupby(marks) if not told]


Splits = dict[str, list[Text]]


def load_model(path: str | Path) -> PreTrainedModel:
    """A causal language model in float32."""
    return AutoModelForCausalLM.from_pretrained(str(path), dtype=torch.float32)


def teacher_folder(setting: Setting, name: str, folder: Path) -> str:
    """Where a setting's teacher is: the model of that name, or the copy in the setting's own folder."""
    return str(folder / TEACHERS / Path(name).name) if setting.teacher_ending else model_folder(name)


def load_teachers(setting: Setting, folder: Path) -> dict[str, PreTrainedModel]:
    """The teacher of every part; one that has several parts is loaded once."""
    names = dict.fromkeys(setting.teacher_of(part) for part in setting.parts)
    loaded = {name: load_model(teacher_folder(setting, name, folder)) for name in names}
    return {part: loaded[setting.teacher_of(part)] for part in setting.parts}


def write_texts(path: Path, texts: Splits) -> None:
    """Prompts and responses of all splits, as one file of JSON."""
    write_whole(path, json.dumps({split: [asdict(text) for text in rows] for split, rows in texts.items()}) + "\n")


def read_texts(path: Path) -> Splits:
    """What `write_texts` wrote."""
    data = json.loads(path.read_text(encoding="utf-8"))
    return {split: [Text(**row) for row in rows] for split, rows in data.items()}


def make_texts(setting: Setting, plan: Plan, folder: Path) -> Splits:
    """Prompts of every split with their teacher's responses; splits share no prompt."""
    if setting.environment:
        from .episode_ruler import make_episodes

        return make_episodes(teacher_folder(setting, setting.teacher, folder), plan)
    if setting.stories:
        return stories(teacher_folder(setting, setting.teacher, folder), setting.stories, plan)
    student = setting.student if isinstance(setting.student, str) else setting.teacher
    tokenizer = AutoTokenizer.from_pretrained(str(model_folder(student)))
    prompts = _domain_prompts(setting, plan) if setting.domains else _file_prompts(setting, plan)
    return {
        split: _answered(setting, rows, tokenizer, plan, SPLITS.index(split), folder) for split, rows in prompts.items()
    }


def _domain_prompts(setting: Setting, plan: Plan) -> dict[str, list[dict[str, Any]]]:
    """Problems by turns of the domains, so that the first n rows are of all of them."""
    found = {}
    for split in SPLITS:
        count = plan.prompts[split]
        columns = [records(domain, split, count, plan.prompt_seed) for domain in setting.domains]  # type: ignore[arg-type]
        found[split] = [
            {"prompt": row["prompt"], "part": domain}
            for rows in zip(*columns, strict=True)
            for domain, row in zip(setting.domains, rows, strict=True)
        ]
    return found


def _file_prompts(setting: Setting, plan: Plan) -> dict[str, list[dict[str, Any]]]:
    from ...data import load_prompts

    found = {}
    for split in SPLITS:
        rows = list(load_prompts(setting.data[split], limit=plan.prompts[split]).dataset)
        if len(rows) < plan.prompts[split]:
            raise ValueError(
                f"prompts.{split} is {plan.prompts[split]}, but {setting.data[split]} has {len(rows)}. Lower it."
            )
        _check_read(setting.data[split], rows)
        kept = ("prompt", "teacher_response")
        found[split] = [{"part": "data"} | {name: row[name] for name in kept if name in row} for row in rows]
    _check_disjoint(setting, found)
    return found


def _check_read(source: Any, rows: list[dict[str, Any]]) -> None:
    """Refuse columns that change what a model reads, and that a comparison does not hand on."""
    for name in ("tools", "teacher_prompt"):
        if any(row.get(name) and not (name == "tools" and isinstance(row["prompt"], str)) for row in rows):
            raise ValueError(
                f"{source} has a column {name!r}, which a comparison does not pass on, so the models would read "
                "different prompts than the data give. Remove the column, or compare runs of `tropd train`."
            )


def _check_disjoint(setting: Setting, found: dict[str, list[dict[str, Any]]]) -> None:
    seen: dict[str, str] = {}
    for split, rows in found.items():
        for row in rows:
            first = seen.setdefault(json.dumps(row["prompt"], sort_keys=True), split)
            if first != split:
                raise ValueError(
                    f"{setting.data[split]} has the prompt {str(row['prompt'])!r:.80}, which {setting.data[first]} has "
                    f"too: {split} and {first} must not share a prompt. Remove it from one of them."
                )


def _answered(
    setting: Setting, rows: list[dict[str, Any]], tokenizer: Any, plan: Plan, stream: int, folder: Path
) -> list[Text]:
    """The rows with a response of their part's teacher, where the data have none."""
    from ...rollout.guidance import response_ids
    from ...run.context import tokenize

    template = plan.trainer.get("chat_template_kwargs") or {}
    ids = tokenize(tokenizer, [row["prompt"] for row in rows], template)
    texts: dict[int, Text] = {}
    for name in dict.fromkeys(setting.teacher_of(row["part"]) for row in rows):
        mine = [n for n, row in enumerate(rows) if setting.teacher_of(row["part"]) == name]
        given = [n for n in mine if rows[n].get("teacher_response") is not None]
        wanted = [n for n in mine if rows[n].get("teacher_response") is None]
        teacher = teacher_folder(setting, name, folder)
        eos_ids = eos_ids_of(teacher)
        for n in given:
            given_response, prompt = rows[n]["teacher_response"], rows[n]["prompt"]
            response = response_ids(given_response, prompt, ids[n], tokenizer, eos_ids, **template)
            texts[n] = Text(rows[n]["prompt"], ids[n], [*response, eos_ids[0]][: plan.max_length], rows[n]["part"])
        written = _write(teacher, [ids[n] for n in wanted], tokenizer, plan, stream)
        for n, response in zip(wanted, written, strict=True):
            texts[n] = Text(rows[n]["prompt"], ids[n], response, rows[n]["part"])
    return [texts[n] for n in range(len(rows))]


def _write(teacher: str, prompts: list[list[int]], tokenizer: Any, plan: Plan, stream: int) -> list[list[int]]:
    if not prompts:
        return []
    return sample_responses(
        load_model(teacher),
        prompts,
        max_new_tokens=plan.max_length,
        eos_ids=eos_ids_of(teacher),
        pad_id=tokenizer.pad_token_id,
        seed=plan.prompt_seed + stream,
    )


def eos_ids_of(folder: str | Path) -> list[int]:
    """Every id that ends a response of this model."""
    return read_model_files(folder).eos_ids


def stories(teacher: str | Path, prompt_tokens: Sequence[int], plan: Plan) -> Splits:
    """The teacher's own texts from an empty context, split into disjoint train, validation and test prompts.

    The prompt is a text's first tokens (a length in `prompt_tokens`, by turns), the response its continuation. A text
    whose prompt does not survive decoding and tokenising, or was seen before, is skipped.
    """
    wanted = sum(plan.prompts.values())
    texts: dict[str, Text] = {}
    for batch, found in enumerate(_sampled_stories(teacher, prompt_tokens, plan)):
        if batch > 20 + wanted // 8:
            raise ValueError(f"the teacher wrote only {len(texts)} of {wanted} different prompts in {batch} batches.")
        for text in found:
            texts.setdefault(text.prompt, text)
        if len(texts) >= wanted:
            break
    ordered, splits, start = list(texts.values()), {}, 0
    for split in SPLITS:
        splits[split] = ordered[start : start + plan.prompts[split]]
        start += plan.prompts[split]
    return splits


def _sampled_stories(teacher_path: str | Path, prompt_tokens: Sequence[int], plan: Plan) -> Iterator[list[Text]]:
    teacher, files = load_model(teacher_path), read_model_files(teacher_path)
    tokenizer, (shortest, longest) = files.tokenizer, prompt_tokens
    start, seed = [tokenizer.bos_token_id], plan.prompt_seed
    while True:
        sampled = sample_responses(
            teacher,
            [start] * TEXTS_AT_ONCE,
            max_new_tokens=longest + plan.max_length,
            eos_ids=files.eos_ids,
            pad_id=tokenizer.pad_token_id,
            seed=seed,
        )
        texts = []
        for number, ids in enumerate(sampled):
            length = shortest + number % (longest - shortest + 1)
            prompt_ids, response = start + ids[:length], ids[length : length + plan.max_length]
            prompt = tokenizer.decode(prompt_ids, skip_special_tokens=True)
            if response and text_ids(tokenizer, [prompt])[0] == prompt_ids:
                texts.append(Text(prompt, prompt_ids, response, "stories"))
        yield texts
        seed += 1
