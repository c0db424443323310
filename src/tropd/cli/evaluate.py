"""`tropd evaluate`: a model's responses to benchmarks, graded, with scores that say what they are uncertain by."""

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..models.folder import check_model_folder, check_weights
from ..shipped import locate_field
from ..suggestions import hint
from . import console, writers
from .generate import DTYPES, json_mapping
from .options import add_option

if TYPE_CHECKING:
    from ..engines.drawing import Writer
    from ..evaluation.benchmarks.problem import Problem
    from ..evaluation.benchmarks.registry import Benchmark, Found
    from ..evaluation.responses import ResponseLog, Sampling
    from ..models.files import ModelFiles

HELP = "grade a model on benchmarks"

DESCRIPTION = """\
Run a model on benchmarks, grade its responses, and write scores with their standard errors.

You provide the benchmark files: --list says which are found in a folder, what is missing and where to get it.
Generated programs and hostile answers run in a sandbox that needs no root; if a machine cannot have one,
benchmarks that need it are refused.

If it is killed, the same command resumes. You can add another benchmark to the same --out later."""

EPILOG = """\
examples:
  tropd evaluate --list --data benchmarks/
  tropd evaluate run --benchmarks aime24,aime25,amc23 --data benchmarks/ --out eval/tropd
  tropd evaluate run --benchmarks math500,own.jsonl --data benchmarks/ --samples 4 --out eval/tropd
  tropd evaluate run --environment my_module.Shop --data orders.jsonl --out eval/shop
  tropd evaluate run --benchmarks aime24 --data benchmarks/ --engine vllm --out eval/tropd
  tropd evaluate run --benchmarks aime24 --data benchmarks/ --engine http://127.0.0.1:8000/v1 --out eval/tropd
  tropd evaluate run --benchmarks gsm8k --data benchmarks/ --out eval/tropd --card
  tropd evaluate --regrade eval/tropd --data benchmarks/ --trained_on prompts.jsonl
  tropd evaluate --compare eval/tropd eval/gkd --reference eval/opd
  tropd evaluate --compare eval/tropd-1,eval/tropd-2 --reference eval/opd-1,eval/opd-2   (two seeds each)"""

DEFAULTS: dict[str, tuple[Any, str]] = {
    "benchmarks": (None, "names separated by commas, or paths of your own JSONL files"),
    "data": (None, "folder of the benchmarks' files; for episodes, the prompts"),
    "out": (None, "folder to write, or to resume"),
    "engine": ("hf", "what generates: hf (the default), vllm, or the address of a vLLM server"),
    "samples": (0, "responses to each problem (default: the benchmark's own, see --list)"),
    "max_problems": (0, "use only this many problems of each benchmark, evenly spaced (default: all)"),
    "temperature": (0.6, "of the softmax; 0 takes the likeliest token (default: 0.6)"),
    "top_p": (0.95, "sample from the likeliest tokens that together have this probability (default: 0.95)"),
    "top_k": (0, "sample from this many likeliest tokens (default: 0, all)"),
    "min_p": (0.0, "sample from tokens at least this likely relative to the likeliest (default: 0, all)"),
    "max_new_tokens": (8192, "length at which a response is truncated (default: 8192)"),
    "batch_size": (None, "responses sampled together (default: 16; 256 with vllm or a server)"),
    "seed": (42, "the same seed draws the same responses (default: 42)"),
    "dtype": ("auto", "auto (as stored, the default), bfloat16, float16 or float32"),
    "system_prompt": ("", "a system message before every problem"),
    "chat_template_kwargs": ("{}", "arguments of the chat template, as JSON: '{\"enable_thinking\": false}'"),
    "environment": (None, "class whose methods the model may call, by a dotted path: plays the prompts of --data"),
    "tools": (None, "functions that it may call, by dotted paths with commas between them"),
    "max_turns": (64, "longest episode, in turns (default: 64)"),
    "max_tool_result_tokens": (None, "cut longer replies of tools, as training does (default: no cut)"),
    "trained_on": ([], "training data: problems found in it are marked, and scored separately"),
    "card": (False, "write the scores into the model card, README.md in the model's folder"),
    "use_cpu": (False, "compute on the CPU even if there is a GPU"),
    "trust_remote_code": (False, "run the code that a model folder brings along"),
    **writers.VLLM,
    **writers.SERVER,
}
"""Every option that a file given with --config may contain."""

WRITTEN_BY = "written_by"
"""In evaluation.json: the engine that wrote, or resumed, the responses to a benchmark."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", help="model folder, such as a run's, or a name on the Hub")
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML with any of the options below, and model")
    for name, (default, help) in DEFAULTS.items():
        kind: dict[str, Any] = {"metavar": "…", "type": _type_of(name, default)}
        if isinstance(default, list):
            kind = {"metavar": "FILE", "nargs": "+"}
        if isinstance(default, bool):
            kind = {"action": "store_const", "const": True}
        add_option(parser, name, help, default=None, **kind)
    parser.add_argument("--list", action="store_true", help="say which benchmark files are found, and exit")
    parser.add_argument("--regrade", type=Path, metavar="DIR", help="grade the responses of an evaluation again")
    parser.add_argument(
        "--compare", nargs="+", metavar="DIR", help="evaluations to compare; separate the seeds of one by commas"
    )
    parser.add_argument("--reference", metavar="DIR", help="what they are compared with")


def run(options: argparse.Namespace) -> int:
    if options.compare:
        return _compare(options.compare, options.reference)
    settings = _resolved(options)
    if options.list:
        return _list(settings)
    if settings["card"]:
        _check_card(settings, options.regrade)
    if options.regrade:
        return _regrade(options.regrade, settings)
    if settings["environment"] or settings["tools"]:
        from .evaluate_episodes import evaluate_episodes

        _needed(settings, "model", "data", "out")
        settings["model"] = locate_field("model", settings["model"])
        return evaluate_episodes(settings, _sampling(settings))
    return _evaluate(settings)


def _resolved(options: argparse.Namespace) -> dict[str, Any]:
    """Every option: from the command line, else from the file, else its default."""
    from ..run.configuration import convert, read_file

    known = {"model": None, **{name: default for name, (default, _) in DEFAULTS.items()}}
    written = read_file(options.config) if options.config else {}
    for name, value in written.items():
        if name not in known:
            raise ValueError(
                f"{value.place} has {name!r}, which is not an option of `tropd evaluate`{hint(name, known)}."
            )
    settings = {}
    for name, default in known.items():
        value = getattr(options, name)
        if value is None and name in written:
            value = convert(name, written[name], IN_A_FILE.get(name, _type_of(name, default)) | None)
        settings[name] = default if value is None else value
    if isinstance(settings["benchmarks"], list):
        settings["benchmarks"] = ",".join(settings["benchmarks"])
    if isinstance(settings["chat_template_kwargs"], dict):
        settings["chat_template_kwargs"] = json.dumps(settings["chat_template_kwargs"])
    if settings["dtype"] not in DTYPES:
        raise ValueError(f"dtype is {settings['dtype']!r}; choose one of {', '.join(DTYPES)}.")
    return settings


IN_A_FILE = {"benchmarks": str | list[str], "trained_on": list[str], "chat_template_kwargs": str | dict[str, Any]}
"""Options that a file may write as lists or mappings."""


def _type_of(name: str, default: Any) -> type:
    if default is None:
        return int if name in ("batch_size", "max_tool_result_tokens") else str
    return type(default)


def _needed(settings: dict[str, Any], *names: str) -> None:
    for name in names:
        if settings[name] is None:
            example = "tropd evaluate MODEL --benchmarks aime24 --data benchmarks/ --out eval/first"
            raise ValueError(f"{name} is not set; for instance: {example}")


def _check_card(settings: dict[str, Any], regraded: Path | None) -> None:
    """Refuse scores for a card that cannot have them, before anything is computed."""
    from ..evaluation.card import check_card

    if settings["environment"] or settings["tools"]:
        raise ValueError("card is set, and it takes the scores of benchmarks, not of episodes. Remove card.")
    if regraded is not None:
        raise ValueError(
            "card and regrade are both set. Regrade, then repeat the evaluation's own command with --card."
        )
    _needed(settings, "model")
    check_card(locate_field("model", settings["model"]))


def _list(settings: dict[str, Any]) -> int:
    from ..evaluation.benchmarks.registry import BENCHMARKS, find, load

    _needed(settings, "data")
    for one in BENCHMARKS.values():
        try:
            found = find(one, Path(settings["data"]))
            state = f"found, {len(load(one, found))} problems; {_copy(found)}"
        except ValueError as error:
            state = f"not usable: {error}"
        lines = [
            f"{one.name}  {one.title}",
            f"    {state}",
            f"    grader   {one.grader}; {one.samples} samples per problem",
            f"    licence  {one.licence}",
            f"    source   {one.source}",
        ]
        lines += [f"    lacks    {one.lacks}"] if one.lacks else []
        console.show(*lines)
    return 0


def _copy(found: "Found") -> str:
    digest = ", ".join(value[:12] for value in list(found.sha256.values())[:3])
    told = {True: "same as the copy we tried", False: "differs from the copy we tried", None: "no known digest"}
    return f"{told[found.known]} (SHA-256 {digest}{'…' if len(found.sha256) > 3 else ''})"


def _compare(folders: list[str], reference: str | None) -> int:
    from ..evaluation.results import comparison_table

    if reference is None:
        raise ValueError("reference is not set; name the evaluation to compare with: --reference eval/opd")
    methods = {name: [Path(folder) for folder in name.split(",")] for name in dict.fromkeys([reference, *folders])}
    console.show(comparison_table(methods, reference))
    return 0


def _problems(name: str, settings: dict[str, Any]) -> "tuple[Benchmark, Found, list[Problem]]":
    from ..evaluation.benchmarks.registry import benchmark, evenly, find, load

    one = benchmark(name)
    found = find(one, Path(settings["data"] or "."))
    problems = load(one, found)
    most = settings["max_problems"]
    if most < 0:
        raise ValueError(f"max_problems is {most}; give a number of problems, or remove it to use all.")
    problems = evenly(problems, most or None)
    if found.known is False:
        console.warn(f"{one.title}: these files differ from those we tried; scores may not be comparable.")
    return one, found, problems


def _check_data(names: list[str], settings: dict[str, Any]) -> None:
    """Benchmarks lie in the folder of data; a file of your own lies where its name says."""
    from ..evaluation.benchmarks.registry import benchmark

    if any(benchmark(name).source for name in names):
        _needed(settings, "data")


def _evaluate(settings: dict[str, Any]) -> int:
    """Everything that can be refused is, before the weights are loaded."""
    from ..evaluation.benchmarks.grading import check_gradable
    from ..evaluation.responses import ResponseLog, asked_of, check_fits, describe, read_prompts
    from ..evaluation.results import part_path
    from ..models.files import read_model_files
    from .quiet import quiet_libraries

    _needed(settings, "model", "benchmarks")
    names = [name.strip() for name in settings["benchmarks"].split(",") if name.strip()]
    _check_data(names, settings)
    _needed(settings, "out")
    quiet_libraries()
    settings["model"] = locate_field("model", settings["model"])
    check_model_folder(settings["model"], "model")
    writers.check(settings)
    sampling, folder = _sampling(settings), Path(settings["out"])
    asked = [_problems(name, settings) for name in names]
    for one, _, _ in asked:
        check_gradable(one)
    files = read_model_files(settings["model"], trust_remote_code=settings["trust_remote_code"])
    if sampling.engine != "server":
        check_weights(settings["model"], "model", settings["trust_remote_code"])
    work = []
    for one, found, problems in asked:
        prompted = read_prompts(problems, files.tokenizer, sampling)
        check_fits(prompted, sampling, files)
        samples = settings["samples"] or one.samples
        if samples < 0:
            raise ValueError(f"samples is {samples}; give a number of responses to each problem.")
        described = describe(sampling, asked_of(problems), samples, found.sha256) | {"chat": prompted.chat}
        log = ResponseLog(part_path(folder, "responses", one.name), problems, samples, described, sampling.batch_size)
        work.append((one, log, prompted, described))
    _write_evaluation(folder, work)
    _answer(folder, settings, sampling, files, [(one, log, prompted) for one, log, prompted, _ in work])
    asked_now = {one.name: (log.problems, prompted.thinking_opened) for one, log, prompted, _ in work}
    return _grade_all(folder, asked_now, settings)


def _sampling(settings: dict[str, Any]) -> "Sampling":
    from ..evaluation.responses import Sampling

    example = '{"enable_thinking": false}'
    template = json_mapping("chat_template_kwargs", settings["chat_template_kwargs"], example) or {}
    taken = ("temperature", "top_p", "top_k", "min_p", "max_new_tokens", "seed", "dtype")
    engine = writers.kind_of(settings["engine"])
    return Sampling(
        engine=engine,
        batch_size=writers.BATCH_SIZES[engine] if settings["batch_size"] is None else settings["batch_size"],
        model=str(Path(settings["model"])) if Path(settings["model"]).is_dir() else settings["model"],
        system_prompt=settings["system_prompt"] or None,
        chat_template_kwargs=template,
        **{name: settings[name] for name in taken},
    )


def _write_evaluation(folder: Path, work: list[Any]) -> None:
    from ..atomic_files import write_whole
    from ..evaluation.results import EVALUATION, versions

    path = folder / EVALUATION
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"benchmarks": {}}
    for one, log, prompted, described in work:
        before["benchmarks"][one.name] = {
            **described,
            "path": one.again,
            "problems": [problem.id for problem in log.problems],
            "first_prompt": log.problems[0].prompt,
            "thinking_opened": prompted.thinking_opened,
            "versions": versions(),
            WRITTEN_BY: before["benchmarks"].get(one.name, {}).get(WRITTEN_BY),
        }
    write_whole(path, json.dumps(before, indent=2, ensure_ascii=False) + "\n")


def _answer(folder: Path, settings: dict[str, Any], sampling: "Sampling", files: "ModelFiles", work: list[Any]) -> None:
    """Write what is missing; the engine is begun only where something is."""
    from ..evaluation.responses import write_responses

    missing = [(one, log, prompted) for one, log, prompted in work if log.done < log.total]
    if not missing:
        console.say("all responses are already there.")
        return
    longest = max(len(context) for _, _, prompted in missing for context in prompted.contexts)
    writer = writers.begin(files, "model", settings, longest)
    try:
        console.say(writers.described(sampling.model, writer))
        _note_writer(folder, writer, {one.name: log for one, log, _ in missing})
        for one, log, prompted in missing:
            resumed = f", {log.done} of {log.total} responses are already there" if log.done else ""
            console.say(f"{one.title}: {len(log.problems)} problems{resumed}")
            with console.progress(one.name, log.total, "responses", log.done) as advance:
                write_responses(writer, files.tokenizer, files.eos_ids, prompted, log, sampling, one.name, advance)
    finally:
        writer.close()


def _note_writer(folder: Path, writer: "Writer", logs: "dict[str, ResponseLog]") -> None:
    from ..atomic_files import write_whole
    from ..evaluation.results import EVALUATION
    from ..teacher.served.served import is_same_model

    path, now = folder / EVALUATION, writer.describe()
    record = json.loads(path.read_text(encoding="utf-8"))
    for name, log in logs.items():
        before = record["benchmarks"][name][WRITTEN_BY]
        known = before.get("fingerprint") if log.done and before else None
        if known is not None and not is_same_model(known, now["fingerprint"]):
            raise ValueError(
                f"the server at {now['address']} now has a different model than the one that wrote {log.path}: the "
                "log-probabilities of a fixed text differ. Serve the earlier model again, or choose another --out."
            )
        record["benchmarks"][name][WRITTEN_BY] = now
    write_whole(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def _grade_all(
    folder: Path, asked: "dict[str, tuple[Any, bool]]", settings: dict[str, Any], again: bool = False
) -> int:
    """Grade what is not, and print the tables of all that is."""
    from ..evaluation import results

    for name, (problems, opened) in asked.items():
        if results.is_graded(folder, name) and not again:
            continue
        with results.part_path(folder, "responses", name).open("rb") as stream:
            total = sum(1 for _ in stream)
        started = time.monotonic()
        with console.progress(f"grade {name}", total, "responses") as advance:
            results.grade(folder, name, problems, opened, advance)
        console.say(f"{name} graded in {console.duration(time.monotonic() - started)}")
    if settings["trained_on"]:
        _mark_seen(folder, asked, settings["trained_on"])
    graded = {name: results.read_graded(folder, name) for name in results.graded_benchmarks(folder)}
    console.show(results.write_scores(folder, graded))
    console.say(f"written: {folder}/evaluation.json, responses/, verdicts/, scores.json, tables.md, evaluation.html")
    if settings["card"]:
        from ..evaluation.card import write_scores_to_card

        scores = json.loads((folder / results.SCORES).read_text(encoding="utf-8"))
        console.say(f"the scores are in the model card: {write_scores_to_card(settings['model'], scores)}")
    return 0


def _mark_seen(folder: Path, asked: "dict[str, tuple[Any, bool]]", trained_on: list[str]) -> None:
    from ..evaluation.contamination import read_trained_on
    from ..evaluation.results import write_overlap

    found = read_trained_on(trained_on)
    for name, (problems, _) in asked.items():
        count = write_overlap(folder, name, problems, found)
        console.say(f"{name}: {count} of {len(problems)} problems are in the training data ({len(found.rows):,} rows)")


def _regrade(folder: Path, settings: dict[str, Any]) -> int:
    """Grade stored responses again, by the graders of today."""
    from ..evaluation.responses import asked_of, sha256_of
    from ..evaluation.results import EVALUATION, part_path

    path = folder / EVALUATION
    if not path.is_file():
        raise ValueError(f"regrade is {folder}, which has no {EVALUATION}. Name the --out of an evaluation.")
    asked = {}
    for name, described in json.loads(path.read_text(encoding="utf-8"))["benchmarks"].items():
        if not part_path(folder, "responses", name).is_file():
            continue
        source = described["path"] or name
        _check_data([source], settings)
        _, _, problems = _problems(source, settings | {"max_problems": 0})
        by_id = {problem.id: problem for problem in problems}
        problems = [by_id[identity] for identity in described["problems"] if identity in by_id]
        if sha256_of(asked_of(problems)) != described["problems_sha256"]:
            raise ValueError(
                f"{source} differs from the problems of {folder}. Give the --data of the earlier evaluation."
            )
        asked[name] = (problems, described["thinking_opened"])
    return _grade_all(folder, asked, settings, again=True)
