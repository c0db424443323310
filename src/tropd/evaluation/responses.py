"""A model's responses to benchmarks: addressed, so that a sample is the same in any batch, and resumable."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..engines.batch_file import BatchFile
from .benchmarks.problem import Problem

if TYPE_CHECKING:
    from ..engines.drawing import Writer

MOST_SAMPLES = 2**16
"""Of one problem; a row of noise is `problem · MOST_SAMPLES + sample`, so more samples leave the first as they were."""


@dataclass(frozen=True)
class Sampling:
    """All that determines a model's responses, as `tropd evaluate --help` explains it; resumed only with the same."""

    model: str
    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 0
    min_p: float = 0.0
    max_new_tokens: int = 8192
    batch_size: int = 16
    seed: int = 42
    dtype: str = "auto"
    engine: str = "hf"
    system_prompt: str | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in (("max_new_tokens", self.max_new_tokens), ("batch_size", self.batch_size)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(
                f"temperature is {self.temperature:g}; give 0 for the likeliest token, or a number above 0."
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p:g}; it is a probability above 0, and 1 draws from all tokens.")
        if not 0 <= self.min_p < 1:
            raise ValueError(f"min_p is {self.min_p:g}; it is a share below 1, and 0 draws from all tokens.")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; it is a number of tokens, and 0 draws from all.")


class ResponseLog(BatchFile):
    """Responses to one benchmark, all samples of a problem side by side, and beside them `<name>.settings.json`."""

    def __init__(
        self, path: Path, problems: Sequence[Problem], samples: int, described: dict[str, Any], batch_size: int
    ):
        self.problems, self.samples = problems, samples
        super().__init__(path, path.with_suffix(".settings.json"), described, len(problems) * samples, batch_size)

    def is_expected(self, record: dict[str, Any], line: int) -> bool:
        """See `BatchFile`: it is of this problem and sample."""
        number, sample = divmod(line, self.samples)
        return (record.get("problem"), record.get("sample")) == (self.problems[number].id, sample)


def asked_of(problems: Sequence[Problem]) -> list[list[str]]:
    """What is asked of a model, as plain data."""
    return [[problem.id, problem.prompt] for problem in problems]


def sha256_of(asked: Sequence[Any]) -> str:
    """Of everything that is asked, in its order; what is no plain data counts as its text."""
    text = json.dumps(list(asked), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def describe_model(name: str) -> dict[str, Any]:
    """What a local model's folder holds: the bytes of each file of weights, and the SHA-256 of its other JSON files."""
    folder = Path(name)
    if not folder.is_dir():
        return {"name": name}
    weights = {
        path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.suffix in (".safetensors", ".bin")
    }
    small = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.json"))}
    return {"name": name, "weights": weights, "files": small}


def describe(sampling: Sampling, asked: Sequence[Any], samples: int, files: dict[str, str]) -> dict[str, Any]:
    """All that decides the responses to one benchmark, or the episodes of one file of prompts.

    `asked` are, in order, `asked_of` the problems of a benchmark, or the rows that episodes begin from; `files` has the
    SHA-256 of each file of data.
    """
    return {
        **asdict(sampling),
        "model": describe_model(sampling.model),
        "samples": samples,
        "num_problems": len(asked),
        "problems_sha256": sha256_of(asked),
        "files": files,
    }


@dataclass(frozen=True)
class Prompted:
    """What the model reads before each response, and whether it is inside of a thought, or a chat template's."""

    contexts: list[list[int]]
    thinking_opened: bool
    chat: bool


def read_prompts(problems: Sequence[Problem], tokenizer: Any, sampling: Sampling) -> Prompted:
    """Prompts as a user's messages through the model's chat template; as plain text, where it has none."""
    from ..models.chat_templates import render
    from ..teacher.context import text_ids
    from .graders.text import THINK_END, THINK_START

    if not tokenizer.chat_template:
        if sampling.system_prompt or sampling.chat_template_kwargs:
            raise ValueError(
                f"{sampling.model} has no chat template, so system_prompt and chat_template_kwargs have no effect. "
                "Remove them, or evaluate a model with a template."
            )
        return Prompted(text_ids(tokenizer, [problem.prompt for problem in problems]), False, False)
    before = [{"role": "system", "content": sampling.system_prompt}] if sampling.system_prompt else []
    texts = [
        render(
            tokenizer,
            [*before, {"role": "user", "content": problem.prompt}],
            add_generation_prompt=True,
            tokenize=False,
            **sampling.chat_template_kwargs,
        )
        for problem in problems
    ]
    opened = all(text.rfind(THINK_START) > text.rfind(THINK_END) for text in texts)
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return Prompted([list(row) for row in ids], opened, True)


def check_fits(prompted: Prompted, sampling: Sampling, model: Any) -> None:
    """Refuse a model without an end, and prompts that leave no room for a response."""
    if not model.eos_ids:
        raise ValueError(
            f"neither generation_config.json nor the tokenizer of {sampling.model} names an end of sequence, so no "
            "response would ever end. Set eos_token_id in generation_config.json."
        )
    positions, longest = model.context_length, max(map(len, prompted.contexts))
    if positions is not None and longest + sampling.max_new_tokens > positions:
        raise ValueError(
            f"max_new_tokens is {sampling.max_new_tokens} and the longest prompt has {longest} tokens: together they "
            f"exceed the context of {sampling.model}, {positions} tokens. Lower max_new_tokens to "
            f"{positions - longest} or less."
        )


def write_responses(
    writer: "Writer",
    tokenizer: Any,
    eos_ids: Sequence[int],
    prompted: Prompted,
    log: ResponseLog,
    sampling: Sampling,
    name: str,
    advance: Callable[[int], Any],
) -> None:
    """Draw what the log misses, batch by batch."""
    from ..engines.drawing import Drawing
    from ..rollout.engine.noise import BENCHMARK_STREAM, AddressedNoise

    drawing = Drawing(
        max_new_tokens=sampling.max_new_tokens,
        eos_ids=tuple(eos_ids),
        vocab_limit=max(tokenizer.get_vocab().values()) + 1,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
    )
    seed = seed_of(sampling.seed, name)
    for lines in log.missing_batches():
        asked = [divmod(line, log.samples) for line in lines]
        contexts = [prompted.contexts[number] for number, _ in asked]
        places = [(number * MOST_SAMPLES + sample, 0) for number, sample in asked]
        noise = AddressedNoise(seed=seed, step=0, stream=BENCHMARK_STREAM, places=places)
        responses = writer.write(contexts, noise, drawing)
        log.append(
            [
                _record(log.problems[number].id, sample, response, tokenizer, eos_ids)
                for (number, sample), response in zip(asked, responses, strict=True)
            ]
        )
        advance(len(lines))


def seed_of(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8])


def _record(problem: str, sample: int, response: list[int], tokenizer: Any, eos_ids: Sequence[int]) -> dict[str, Any]:
    from ..models.sampling import until_eos

    ids = until_eos(response, eos_ids)
    return {
        "problem": problem,
        "sample": sample,
        "ended": len(ids) < len(response),
        "text": tokenizer.decode(ids),
        "token_ids": ids,
    }
