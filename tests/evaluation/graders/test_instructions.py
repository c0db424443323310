"""Instructions are checked by the packages of their benchmarks, offline, and one that cannot be is undecided."""

import pytest

from tropd.evaluation.graders import instructions
from tropd.evaluation.graders.instructions import InstructionGrader, InstructionTests, missing_for_instructions
from tropd.evaluation.sandbox import why_not_here


@pytest.fixture(scope="module")
def grader():
    missing = missing_for_instructions() or why_not_here()
    if missing is not None:
        pytest.skip(missing)
    with InstructionGrader("ifeval") as made:
        yield made


NO_COMMA = InstructionTests("Write without commas.", ["punctuation:no_comma"], [{}])
TWO = InstructionTests(
    "Write in two sentences without commas.",
    ["punctuation:no_comma", "length_constraints:number_sentences"],
    [{}, {"relation": "at least", "num_sentences": 2}],
)


@pytest.mark.parametrize(
    ("response", "tests", "outcome", "strict", "loose"),
    [
        ("One. Two.", TWO, "right", [True, True], [True, True]),
        ("One, two.", TWO, "wrong", [False, False], [False, False]),
        ("Sure, here:\nOne word", NO_COMMA, "right", [False], [True]),  # loosely without its first line
        ("<think>a, b</think>None here", NO_COMMA, "right", [True], [True]),
    ],
)
def test_a_response_is_right_where_it_follows_all_loosely(grader, response, tests, outcome, strict, loose):
    verdict = grader.grade(response, tests)
    assert (verdict.outcome, verdict.details) == (outcome, {"strict": strict, "loose": loose})


def test_what_a_checker_draws_is_the_same_in_every_grading(grader):
    open_ended = InstructionTests("Use a keyword often.", ["keywords:frequency"], [{"keyword": "word"}])
    assert {grader.grade("word word", open_ended).outcome for _ in range(5)} != {"right", "wrong"}


def test_no_text_and_an_unknown_instruction(grader):
    verdict = grader.grade("<think>hm", NO_COMMA)
    assert verdict.outcome == "no_answer" and verdict.details == {"strict": [False], "loose": [False]}
    assert grader.grade("text", InstructionTests("", ["of:another_year"], [{}])).outcome == "undecided"


def test_an_instruction_that_needs_absent_data_is_undecided_and_says_so():
    missing = missing_for_instructions() or why_not_here()
    if missing is not None:
        pytest.skip(missing)
    with InstructionGrader("ifbench") as made:
        made._tagged = False
        verdict = made.grade("Run.", InstructionTests("Start with a verb.", ["words:start_verb"], [{}]))
        assert verdict.outcome == "undecided" and "NLTK's tagger" in verdict.why


def test_what_is_missing_is_said_with_the_way_to_get_it(monkeypatch):
    monkeypatch.setattr(instructions, "find_spec", lambda name: None if name == "if_verifiable" else object())
    with pytest.raises(ValueError, match=r"needs if_verifiable\. Install them with: pip install 'tropd\[eval\]'"):
        InstructionGrader("ifeval")
    monkeypatch.setattr(instructions, "find_spec", lambda name: object())
    monkeypatch.setattr(instructions, "nltk_folder", lambda: None)
    with pytest.raises(ValueError, match=r"needs NLTK's punkt_tab.*pip install --no-deps llama-index-core"):
        InstructionGrader("ifbench")
