"""Numbers are compared as numbers, all else by math-verify under limits of processor time."""

import subprocess
import sys

import pytest

from tropd.evaluation.graders import mathematics
from tropd.evaluation.graders.mathematics import MathematicsGrader
from tropd.evaluation.sandbox import Limits, why_not_here


@pytest.fixture(scope="module")
def grader():
    with MathematicsGrader() as made:
        yield made


@pytest.fixture(scope="module")
def with_math_verify(grader):
    pytest.importorskip("math_verify", reason="math-verify is not installed: pip install 'tropd[eval]'")
    if why_not_here() is not None:
        pytest.skip(str(why_not_here()))
    return grader


@pytest.mark.parametrize("gold", ["033", "33", "33.0"])
@pytest.mark.parametrize("answer", ["33", "033", "33.0", " 33 ", "$33$", r"33\,", "+33", "33."])
def test_integers_are_compared_as_integers(grader, gold, answer):
    assert grader.grade(rf"\boxed{{{answer}}}", gold).outcome == "right"


@pytest.mark.parametrize("answer", ["34", "3.3", "330", "-33", "3 4"])
def test_another_integer_is_wrong(grader, answer):
    assert grader.grade(rf"\boxed{{{answer}}}", "033").outcome == "wrong"


@pytest.mark.parametrize(("answer", "gold"), [("1,200", "1200"), (r"\$1{,}200", "1200"), ("1200.50", "1200.5")])
def test_thousands_and_decimals(grader, answer, gold):
    assert grader.grade(rf"\boxed{{{answer}}}", gold).outcome == "right"


@pytest.mark.parametrize(
    ("response", "why"),
    [
        ("we get 33", "no closed box"),
        (r"so it is \boxed{33", "no closed box"),
        ("<think>\\boxed{33}", "no text, or none after the thinking"),
        ("#### 33", "no closed box"),
    ],
)
def test_without_a_closed_box_there_is_no_answer_though_the_number_is_there(grader, response, why):
    verdict = grader.grade(response, "33")
    assert (verdict.outcome, verdict.why, verdict.score) == ("no_answer", why, 0.0)


@pytest.mark.parametrize(
    ("response", "gold", "lenient"),
    [
        ("we get 33 and then", "033", True),  # cut, and right by this rule
        ("first 33, then 34", "33", False),
        (r"\boxed{33} and 34 more", "33", True),  # the strict rule's right stays right
        ("it costs $1,200.50.", "1200.5", True),
        ("so -3", "3", False),
        ("nothing", "3", False),
    ],
)
def test_what_a_lenient_rule_would_say_stands_beside_and_changes_nothing(grader, response, gold, lenient):
    verdict = grader.grade(response, gold)
    assert verdict.details["last_number"] is lenient and verdict.details["boxed"] is ("boxed" in response)
    assert (verdict.outcome == "right") is ("boxed" in response)


def test_where_the_gold_answer_is_no_number_there_is_no_lenient_rule(grader):
    assert "last_number" not in grader.grade("so 3", "x^2").details


BUSY = "while True: pass"
AWKWARD = (
    (r"\boxed{(x+1)^{12}}", r"(x+1)^{12}+x-x"),
    (r"\boxed{\frac{\sqrt{8}}{2}}", r"\sqrt{2}"),
    (r"\boxed{\prod_{k=1}^{40} k}", "40!"),
    (r"\boxed{9^{9^{9^9}}}", "7"),
    (r"\boxed{2^{2^{30}}}", "7"),
    (r"\boxed{[0,1)\cup(2,3]}", r"(2,3]\cup[0,1)"),
)


@pytest.mark.slow
def test_verdicts_are_the_same_beside_eight_busy_loops(with_math_verify):
    def verdicts():
        with MathematicsGrader() as made:
            return [made.grade(response, gold) for response, gold in AWKWARD]

    alone = verdicts()
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(8)]
    try:
        beside = verdicts()
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert beside == alone
    assert [verdict.outcome for verdict in alone[:2]] == ["right", "right"]
    assert {verdict.outcome for verdict in alone} > {"right"}


def test_hashes_are_an_answer_where_they_are_asked_for(grader):
    assert grader.grade("so\n#### 1,200", "1200", hashes=True).outcome == "right"
    assert grader.grade("#### 1\n\\boxed{2}", "2", hashes=True).outcome == "right"


@pytest.mark.parametrize(
    ("answer", "gold", "outcome"),
    [
        ("x=25", "25", "right"),
        (r"\frac{66}{2}", "33", "right"),
        (r"33^\circ", "33", "right"),
        (r"25\text{ cm}", "25", "right"),
        (r"10\%", "10", "right"),  # wrong with antlr4 4.11
        (r"\frac12", r"\frac{1}{2}", "right"),
        (r"\left(3, \frac{\pi}{2}\right)", r"(3,\pi/2)", "right"),
        (r"\text{Evelyn}", r"\text{Evelyn}", "right"),
        (r"\sqrt{8}", r"2\sqrt{2}", "right"),
        ("12, 33", "33", "wrong"),
        (r"\frac{1}{3}", r"\frac{1}{2}", "wrong"),
        ("no idea", "33", "wrong"),
        ("", r"\pi", "wrong"),
        ("__import__('os').system('true')", "33", "wrong"),
    ],
)
def test_other_answers_are_compared_by_math_verify(with_math_verify, answer, gold, outcome):
    assert with_math_verify.grade(rf"\boxed{{{answer}}}", gold).outcome == outcome


@pytest.mark.parametrize("answer", ["9^{9^{9^{9}}}", "2^{2^{36}}"])
def test_what_cannot_be_decided_within_the_limit_is_undecided_and_the_grader_lives(
    monkeypatch, with_math_verify, answer
):
    monkeypatch.setattr(mathematics, "LIMITS", Limits(cpu_seconds=1, wall_seconds=300.0, memory_bytes=2 << 30))
    verdict = with_math_verify.grade(rf"\boxed{{{answer}}}", "5")
    assert verdict.outcome == "undecided" and verdict.score == 0.0
    assert with_math_verify.grade(r"\boxed{\frac{10}{2}}", "5").outcome == "right"


def test_math_verify_is_missed_in_a_sentence(monkeypatch):
    monkeypatch.setattr(mathematics, "find_spec", lambda name: None)
    with MathematicsGrader() as made:
        assert made.grade(r"\boxed{33}", "033").outcome == "right"  # needs none
        with pytest.raises(ValueError, match=r"needs math-verify, which is not installed.*tropd\[eval\]"):
            made.grade(r"\boxed{x}", "y")
