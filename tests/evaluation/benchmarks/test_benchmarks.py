"""Benchmarks are held to their sources: what was tried is what is read, gold is right, and another's gold is wrong."""

import base64
import json
import pickle
import zlib
from pathlib import Path

import pytest

from tropd.evaluation.benchmarks import loaders
from tropd.evaluation.benchmarks.grading import Grader
from tropd.evaluation.benchmarks.problem import Letter, Number
from tropd.evaluation.benchmarks.registry import BENCHMARKS, Found, benchmark, find, load
from tropd.evaluation.graders.code import CallTests, FunctionTests, StreamTests
from tropd.evaluation.graders.instructions import InstructionTests, missing_for_instructions
from tropd.evaluation.sandbox import why_not_here

WITH_A_KNOWN_COPY = [name for name in BENCHMARKS if name != "gpqa_diamond"]


def problems_of(name: str, data_dir: Path):
    try:
        return load(BENCHMARKS[name], find(BENCHMARKS[name], data_dir))
    except ValueError as error:
        if "which is missing" in str(error):
            pytest.skip(str(error))
        raise


def needs_sandbox() -> None:
    if why_not_here() is not None:
        pytest.skip(str(why_not_here()))


@pytest.mark.parametrize("name", WITH_A_KNOWN_COPY)
def test_the_files_are_those_that_were_tried_and_have_their_problems(data_dir, name):
    problems = problems_of(name, data_dir)
    assert len(problems) == BENCHMARKS[name].problems
    assert find(BENCHMARKS[name], data_dir).known in (True, None)
    assert all(problem.prompt.strip() for problem in problems)


def gold_response(problem) -> str:
    check = problem.check
    if isinstance(check, Number):
        return rf"So it is \boxed{{{check.gold}}}."
    if isinstance(check, Letter):
        return f"So.\nAnswer: {check.gold}"
    assert isinstance(check, FunctionTests)
    return f"```python\n{check.reference}\n```"


@pytest.mark.parametrize("name", ["aime24", "aime25", "amc23", "gsm8k", "mmlu_redux", "mmlu"])
def test_gold_is_right_and_the_gold_of_another_problem_wrong(data_dir, name):
    problems = problems_of(name, data_dir)
    with Grader(name) as grader:
        for problem, other in zip(problems, [*problems[1:], problems[0]], strict=True):
            assert grader.grade(problem, gold_response(problem)).outcome == "right"
            if float_or(problem.check.gold) != float_or(other.check.gold):
                assert grader.grade(problem, gold_response(other)).outcome == "wrong"


def float_or(text: str):
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return text


def test_leading_zeros_of_aime_do_not_count(data_dir):
    golds = [problem.check.gold for problem in problems_of("aime24", data_dir)]
    padded = [gold for gold in golds if gold.startswith("0")]
    assert len(padded) == 7
    with Grader("aime24") as grader:
        for problem in problems_of("aime24", data_dir):
            assert grader.grade(problem, rf"\boxed{{{int(problem.check.gold)}}}").outcome == "right"


@pytest.mark.parametrize("every", [10, pytest.param(1, marks=pytest.mark.slow)])
def test_solutions_of_math500_are_right_and_those_of_another_problem_wrong(data_dir, every):
    needs_sandbox()
    pytest.importorskip("math_verify")
    problems = problems_of("math500", data_dir)
    solutions = {
        row["unique_id"]: row["solution"] for row in loaders._jsonl((data_dir / "math500/test.jsonl").read_bytes())
    }
    wrong = []
    with Grader("math500") as grader:
        for problem, other in list(zip(problems, [*problems[1:], problems[0]], strict=True))[::every]:
            assert grader.grade(problem, solutions[problem.id]).outcome == "right", problem.id
            if grader.grade(problem, solutions[other.id]).outcome != "wrong":
                wrong.append((problem.check.gold, other.check.gold))
    allowed = {frozenset(("5", "x=5"))}  # math-verify reads an equation as the value it gives
    assert [pair for pair in wrong if len(set(pair)) > 1 and frozenset(pair) not in allowed] == []


@pytest.mark.parametrize("name", ["humaneval_plus", "mbpp"])
@pytest.mark.parametrize("every", [20, pytest.param(1, marks=pytest.mark.slow)])
def test_canonical_solutions_pass_and_mutants_and_other_solutions_fail(data_dir, name, every):
    needs_sandbox()
    with Grader(name) as grader:
        for problem in problems_of(name, data_dir)[::every]:
            assert grader.grade(problem, gold_response(problem)).outcome == "right", problem.id
            for mutant in mutants(problem.check.defines):
                assert grader.grade(problem, f"```python\n{mutant}\n```").outcome == "wrong", (problem.id, mutant)


def mutants(name: str) -> list[str]:
    return [
        f"def {name}(*arguments): return None",
        f"def {name}(*arguments): return arguments",
        f"class Equal:\n    def __eq__(self, other): return True\ndef {name}(*arguments): return Equal()",
    ]


def test_programs_of_livecodebench_are_run(data_dir):
    needs_sandbox()
    problems = {problem.id: problem for problem in problems_of("livecodebench", data_dir)}
    kinds = [type(problem.check) for problem in problems.values()]
    assert (kinds.count(StreamTests), kinds.count(CallTests)) == (217, 125)
    sum_of_table = "x = int(input())\nprint(sum(a * b for a in range(1, 10) for b in range(1, 10) if a * b != x))"
    with Grader("livecodebench") as grader:
        problem = problems["abc387_b"]
        assert grader.grade(problem, f"```python\n{sum_of_table}\n```").outcome == "right"
        assert grader.grade(problem, f"```python\n{sum_of_table.replace('!=', '==')}\n```").outcome == "wrong"
        zigzag = next(one for one in problems.values() if "zigzagTraversal" in one.prompt)
        method = (
            "class Solution:\n    def zigzagTraversal(self, grid: List[List[int]]) -> List[int]:\n"
            "        cells = [x for i, row in enumerate(grid) for x in (row[::-1] if i % 2 else row)]\n"
            "        return cells[::2]"
        )
        assert grader.grade(zigzag, f"```python\n{method}\n```").outcome == "right"
        assert grader.grade(zigzag, f"```python\n{method.replace('[::2]', '')}\n```").outcome == "wrong"


@pytest.mark.parametrize("name", ["ifeval", "ifbench"])
def test_instructions_are_decided_but_for_those_that_are_named(data_dir, name):
    needs_sandbox()
    if missing_for_instructions() is not None:
        pytest.skip(str(missing_for_instructions()))
    with Grader(name) as grader:
        for problem in problems_of(name, data_dir)[::10]:
            assert isinstance(problem.check, InstructionTests)
            verdict = grader.grade(problem, "One sentence. And another one.")
            assert verdict.outcome != "undecided" or "words:start_verb" in verdict.why


# Without data.


def write_gpqa(folder: Path, questions: int = 40) -> Path:
    path = folder / "gpqa_diamond" / "gpqa_diamond.csv"
    path.parent.mkdir()
    header = "Question,Correct Answer,Incorrect Answer 1,Incorrect Answer 2,Incorrect Answer 3"
    path.write_text("\n".join([header, *(f"q{n},right,one,two,three" for n in range(questions))]), encoding="utf-8")
    return path


def test_choices_of_gpqa_are_ordered_by_their_question(tmp_path):
    write_gpqa(tmp_path)
    first, again = (load(BENCHMARKS["gpqa_diamond"], find(BENCHMARKS["gpqa_diamond"], tmp_path)) for _ in range(2))
    assert first == again
    assert {problem.check.gold for problem in first} == set("ABCD")
    assert all(f"\n{problem.check.gold}. right\n" in problem.prompt for problem in first)


def test_a_benchmark_that_is_not_there_says_where_to_get_it(tmp_path):
    with pytest.raises(ValueError, match=r"AIME 2024 needs .*aime24/test.jsonl, which is missing. Get it from QwenLM"):
        find(BENCHMARKS["aime24"], tmp_path)


def test_a_benchmark_that_is_none_is_refused_with_what_was_meant():
    with pytest.raises(ValueError, match=r"'aime42', which is not a benchmark.*aime24"):
        benchmark("aime42")


def test_another_file_than_the_one_that_was_tried_is_noticed(tmp_path):
    (tmp_path / "aime24").mkdir()
    (tmp_path / "aime24/test.jsonl").write_text('{"id": 1, "problem": "1 + 1?", "answer": "2"}\n')
    found = find(BENCHMARKS["aime24"], tmp_path)
    assert found.known is False and len(load(BENCHMARKS["aime24"], found)) == 1


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"id": 1, "question": "1 + 1?"}\n', "cannot be read as AIME 2024"),
        ('{"id": 1, "problem": "a", "answer": "2"}\n' * 2, "the id '1' more than once"),
        ("\n", "no problems"),
    ],
)
def test_a_file_that_is_another_is_refused_in_a_sentence(tmp_path, text, sentence):
    (tmp_path / "aime24").mkdir()
    (tmp_path / "aime24/test.jsonl").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        load(BENCHMARKS["aime24"], find(BENCHMARKS["aime24"], tmp_path))


def test_a_file_of_ones_own(tmp_path):
    own = tmp_path / "own.jsonl"
    own.write_text('{"question": "1 + 1?", "answer": 2}\n')
    one = benchmark(str(own))
    (problem,) = load(one, find(one, tmp_path / "elsewhere"))
    with Grader(one.name) as grader:
        assert grader.grade(problem, r"\boxed{2}").outcome == "right"
    own.write_text('{"text": "1 + 1?", "answer": 2}\n')
    with pytest.raises(ValueError, match=r"own.jsonl:1 has the columns text, answer; your own benchmark needs"):
        load(one, find(one, tmp_path))


def packed(thing) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(thing))).decode()


class Trap:
    def __reduce__(self):
        return (print, ("a pickle ran code",))


def test_private_tests_are_read_as_plain_data_and_nothing_else(capsys):
    cases = [{"input": "1", "output": "2"}]
    assert loaders.private_cases(json.dumps(cases)) == cases
    assert loaders.private_cases(packed(json.dumps(cases))) == cases
    with pytest.raises(ValueError, match=r"would import builtins.print; plain data never does"):
        loaders.private_cases(packed(Trap()))
    assert capsys.readouterr().out == ""


def test_every_benchmark_says_where_it_comes_from():
    for one in BENCHMARKS.values():
        assert one.source and one.licence and one.grader and one.problems > 0 and one.samples > 0
        assert all(file.sha256 or "*" in file.path or one.lacks for file in one.files)


def test_found_is_what_a_listing_shows(tmp_path):
    path = write_gpqa(tmp_path)
    found = find(BENCHMARKS["gpqa_diamond"], tmp_path)
    assert found == Found(
        (path,), {"gpqa_diamond/gpqa_diamond.csv": found.sha256["gpqa_diamond/gpqa_diamond.csv"]}, None
    )
