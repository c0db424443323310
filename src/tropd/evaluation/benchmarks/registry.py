"""The benchmarks that tropd grades: their files, sources and limitations."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ...data.procedural import Spec, is_procedural
from ...shipped import locate
from ...suggestions import hint
from ..graders.reward import reward_function
from . import loaders
from .mbpp_plus import load_mbpp_plus
from .problem import Problem


@dataclass(frozen=True)
class File:
    """A file below the folder of data, and the SHA-256 of the copy that was tried; `None` where none was."""

    path: str
    sha256: str | None = None


@dataclass(frozen=True)
class Benchmark:
    """A benchmark as data."""

    name: str  # on the command line
    title: str  # in tables
    # one path each, or a pattern such as `mmlu_redux/mmlu_*.csv`, which is read in the order of names
    files: tuple[File, ...]
    load: Callable[..., list[Problem]]  # makes problems of their contents
    problems: int  # how many there are in the copy that was tried
    samples: int  # drawn from a model where nothing else is asked for
    licence: str  # of the data
    source: str  # where a user gets the files
    grader: str  # in a few words
    lacks: str = ""  # what a score from these files cannot be compared with, and why
    needs_sandbox: bool = False  # its grading runs in the sandbox
    again: str | None = None  # what names a user's own another time, from any folder; `None` for those of the registry


def _of_maa(name: str, title: str, files: tuple[File, ...], problems: int, source: str) -> Benchmark:
    licence, grader = "problems © MAA; the data state no licence", "integer in a box"
    return Benchmark(name, title, files, loaders.load_answers, problems, 32, licence, source, grader)


BENCHMARKS = {
    one.name: one
    for one in (
        _of_maa(
            "aime24",
            "AIME 2024",
            (File("aime24/test.jsonl", "af2b8bd2aa911b6333ad0df32f3ca05c7ae8ed10f1731f4372c8ae26990bf7ac"),),
            30,
            "QwenLM/Qwen2.5-Math: evaluation/data/aime24/test.jsonl",
        ),
        _of_maa(
            "aime25",
            "AIME 2025",
            (
                File("aime25/test2025-I.jsonl", "fcdf97fe9bf3768e586c4f3b3d34d98a763893847e72234aa41e1ed5c67d977a"),
                File("aime25/test2025-II.jsonl", "69d966f7badd83a681d30efa9b4d587b4c692e4892b6ea5dc57d11d3934bf79a"),
            ),
            30,
            "GAIR-NLP/AIME-Preview: eval/data/aime/",
        ),
        _of_maa(
            "amc23",
            "AMC 2023",
            (File("amc23/test.jsonl", "43707e1ca784602d8479de24ee8ce36609dbebc46dd152b0b12a46611aa898a4"),),
            40,
            "QwenLM/Qwen2.5-Math: evaluation/data/amc23/test.jsonl",
        ),
        Benchmark(
            "math500",
            "MATH-500",
            (File("math500/test.jsonl", "35dc41080a3680858b27fa7e0533d2d547825316fc5dafe5d316f4ccc5a06132"),),
            loaders.load_math500,
            500,
            4,
            "MIT",
            "hkust-nlp/simpleRL-reason: examples/simplelr_math_eval/data/math500/test.jsonl",
            "box, by math-verify",
            needs_sandbox=True,
        ),
        Benchmark(
            "gsm8k",
            "GSM8K",
            (File("gsm8k/test.jsonl", "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14"),),
            loaders.load_gsm8k,
            1319,
            1,
            "MIT",
            "openai/grade-school-math: grade_school_math/data/test.jsonl",
            "number in a box, or after ####",
        ),
        Benchmark(
            "humaneval_plus",
            "HumanEval+",
            (
                File(
                    "humaneval_plus/HumanEvalPlus.jsonl.gz",
                    "272720b90ac375502c8ed23cd791c2a93dfb22a911641a494da74a426c09f101",
                ),
            ),
            loaders.load_humaneval_plus,
            164,
            4,
            "Apache-2.0",
            "evalplus/humanevalplus_release: HumanEvalPlus.jsonl.gz",
            "values of a function",
            needs_sandbox=True,
        ),
        Benchmark(
            "mbpp",
            "MBPP",
            (File("mbpp/mbpp.jsonl", "ccf64ceae9c5403bf50a044cb6d505bfd2a2963ee58338ba268fd65beab92a9f"),),
            loaders.load_mbpp,
            500,
            4,
            "CC BY 4.0",
            "deepseek-ai/DeepSeek-Coder: Evaluation/MBPP/data/mbpp.jsonl",
            "values of a function",
            "three tests per problem; MBPP+ has more",
            needs_sandbox=True,
        ),
        Benchmark(
            "mbpp_plus",
            "MBPP+",
            (File("mbpp_plus/MbppPlus.jsonl.gz"),),
            load_mbpp_plus,
            378,
            4,
            "Apache-2.0",
            "evalplus/mbppplus_release: MbppPlus.jsonl.gz",
            "values of a function",
            "not tried with a copy: the loader checks each row's inputs against its assertions, and refuses mismatches",
            needs_sandbox=True,
        ),
        Benchmark(
            "livecodebench",
            "LiveCodeBench v5 + v6",
            (File("livecodebench/problems.jsonl", "b88993c9917d1becf5473ab3ddf8f8f11314d7ad6bbbeeb37dd49824d1f9e2e0"),),
            loaders.load_livecodebench,
            342,
            4,
            "believed CC; texts belong to AtCoder and LeetCode",
            "livecodebench/code_generation_lite on the Hub: test5.jsonl and test6.jsonl, concatenated",
            "outputs of a program",
            "the copy we tried has only public tests, 2.6 per problem: scores are above the leaderboard's",
            needs_sandbox=True,
        ),
        Benchmark(
            "gpqa_diamond",
            "GPQA Diamond",
            (File("gpqa_diamond/gpqa_diamond.csv"),),
            loaders.load_gpqa,
            198,
            8,
            "CC BY 4.0; its authors ask not to publish the questions",
            "Idavidrein/gpqa on the Hub: gpqa_diamond.csv, after agreeing to its terms",
            "letter",
            "not tried with a copy: the loader was written from the columns named on its page",
        ),
        Benchmark(
            "mmlu",
            "MMLU",
            (File("mmlu/mmlu.zip", "9e2b2d78bf59d80baf271a13005568ef0aca17bd663f2e5ebfecdc07a68f0edc"),),
            loaders.load_mmlu,
            14042,
            1,
            "MIT",
            "NovaSky-AI/SkyThought: skythought/train/LLaMA-Factory/evaluation/mmlu/mmlu.zip",
            "letter",
        ),
        Benchmark(
            "mmlu_redux",
            "MMLU-Redux 2.0",
            (File("mmlu_redux/mmlu_*.csv"),),
            loaders.load_mmlu_redux,
            5330,
            1,
            "CC BY 4.0",
            "aryopg/mmlu-redux: mmlu_redux/",
            "letter",
            "the 370 questions with a known error are excluded",
        ),
        Benchmark(
            "ifeval",
            "IFEval",
            (File("ifeval/input_data.jsonl", "67ffeee0fcb87c317c5b08a2de85557b4a7e96ada6178aa645b4954fe4b53d49"),),
            loaders.load_instructions,
            541,
            1,
            "CC BY 4.0 or Apache-2.0",
            "josejg/instruction_following_eval: instruction_following_eval/data/input_data.jsonl",
            "if-verifiable, all instructions loosely",
            needs_sandbox=True,
        ),
        Benchmark(
            "ifbench",
            "IFBench",
            (File("ifbench/IFBench_test.jsonl", "a2bf7b8e7ed11d39c65b4ec781da8b99663ed0121f97033d70fcecb61f8a9d85"),),
            loaders.load_instructions,
            300,
            1,
            "ODC-BY-1.0",
            "allenai/IFBench: data/IFBench_test.jsonl",
            "if-verifiable, all instructions loosely",
            "words:start_verb (6 problems) is undecided if NLTK's tagger is missing",
            needs_sandbox=True,
        ),
    )
}


def benchmark(name: str, field: str = "benchmarks") -> Benchmark:
    """A benchmark by its name, or a user's own by the path of its JSONL file; `field` is where it was named."""
    if is_procedural(name):
        return _procedural(name)
    path, at, function = name.partition(".jsonl@")
    if at:
        return _rewarded(locate(f"{path}.jsonl"), function, field)
    if name.endswith(".jsonl"):
        return _own(locate(name))
    if name not in BENCHMARKS:
        raise ValueError(
            f"{field} has {name!r}, which is not a benchmark{hint(name, list(BENCHMARKS))}. There are "
            f"{', '.join(BENCHMARKS)}, JSONL files of your own (path/to/own.jsonl, or "
            "path/to/own.jsonl@package.module:function), and tasks of reasoning-gym (reasoning_gym:TASK)."
        )
    return BENCHMARKS[name]


def _procedural(name: str) -> Benchmark:
    """Test items of one task of reasoning-gym, which needs no files."""
    spec = Spec.parse(name)
    if len(spec.tasks) > 1:
        raise ValueError(
            f"{name!r} has {len(spec.tasks)} tasks; a benchmark has one task. Name each as reasoning_gym:TASK."
        )
    (task,) = spec.tasks
    return Benchmark(
        task,
        f"reasoning-gym {task}",
        (),
        partial(loaders.load_procedural, name),
        spec.size,
        1,
        "Apache-2.0",
        "",
        "the task's own scorer, all points",
        again=name,
    )


def _own(path: str) -> Benchmark:
    """Relative to the working directory, and not to the folder of data."""
    where = str(Path(path).absolute())
    return Benchmark(
        Path(path).stem,
        Path(path).stem,
        (File(where),),
        lambda content: loaders.load_own(path, content),
        0,
        1,
        "your own",
        "",
        "box, by math-verify",
        needs_sandbox=True,
        again=where,
    )


def _rewarded(path: str, function: str, field: str) -> Benchmark:
    load = partial(loaders.load_rewarded, function, reward_function(function, field), path)
    own = _own(path)
    again = f"{own.again}@{function}"
    return replace(own, load=load, grader=f"your function {function}", needs_sandbox=False, again=again)


@dataclass(frozen=True)
class Found:
    """A benchmark's files as they lie in a folder, in the order in which they are read, and the SHA-256 of each.

    `known`: are they the copy that was tried? `None` where no digest is known.
    """

    paths: tuple[Path, ...]
    sha256: dict[str, str]
    known: bool | None


def find(one: Benchmark, folder: Path) -> Found:
    paths: list[Path] = []
    for file in one.files:
        found = sorted(folder.glob(file.path)) if "*" in file.path else [folder / file.path]
        missing = not found or not all(path.is_file() for path in found)
        if missing:
            where = f" Get it from {one.source}." if one.source else ""
            raise ValueError(f"{one.title} needs {folder / file.path}, which is missing.{where}")
        paths += found
    below = [path.relative_to(folder) if path.is_relative_to(folder) else path for path in paths]
    digests = {
        name.as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for name, path in zip(below, paths, strict=True)
    }
    expected = [file.sha256 for file in one.files]
    known = None if None in expected else list(digests.values()) == expected
    return Found(tuple(paths), digests, known)


def evenly(items: Sequence[Any], most: int | None) -> list[Any]:
    """At most `most` of them, evenly spaced; all if `most` is `None`."""
    if most is None or most >= len(items):
        return list(items)
    return [items[place * len(items) // most] for place in range(most)]


def load(one: Benchmark, found: Found) -> list[Problem]:
    """The problems of a benchmark whose files were found.

    Raises:
        ValueError: a file that cannot be read as this benchmark, or two problems of one id.
    """
    contents: Sequence[Any] = [path.read_bytes() for path in found.paths]
    if one.load is loaders.load_mmlu_redux:
        contents = list(zip([path.name for path in found.paths], contents, strict=True))
    try:
        problems = one.load(*contents)
    except (KeyError, IndexError, TypeError, SyntaxError, UnicodeDecodeError, StopIteration) as error:
        names = ", ".join(path.name for path in found.paths[:3])
        raise ValueError(
            f"{names} cannot be read as {one.title} ({type(error).__name__}: {error}). Is it the file from "
            f"{one.source}?"
        ) from error
    repeated = [identity for identity, count in Counter(problem.id for problem in problems).items() if count > 1]
    if repeated or not problems:
        what = f"the id {repeated[0]!r} more than once" if repeated else "no problems"
        raise ValueError(f"{found.paths[0]} has {what}. Is it the file from {one.source or 'a benchmark'}?")
    return problems
