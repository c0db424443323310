"""Multiple choice: the last letter that is given as the answer."""

import re

from .text import behind_thinking
from .verdict import NO_ANSWER, RIGHT, WRONG, Verdict

LETTERS = "ABCDEFGHIJ"

BOXED = r"\\boxed\s*\{\s*(?:\\(?:text|textbf|mathrm|mathbf)\s*\{)?\s*\(?([A-J])\)?\s*\}"

SAID = r"(?i:answer)\s*(?i:is|:)[\s:*_$]*\(?([A-J])(?=\s*(?:[).:,;*_$\]]|\n|$))"

ANSWER = re.compile(f"{BOXED}|{SAID}")
"""A letter in a box, or after "answer is" or "Answer:" with the end of a line or a mark after it, so that the first
word of "the answer is A dog" is none."""


def grade_choice(response: str, gold: str, choices: int = 4, thinking_opened: bool = False) -> Verdict:
    """Is the last letter that the response gives the right one?

    Args:
        response: the model's.
        gold: the right letter.
        choices: how many there are; letters beyond them are no answer.
        thinking_opened: see `text.behind_thinking`.

    >>> grade_choice("As B is wrong, the answer is (C).", "C").outcome
    'right'
    """
    text = behind_thinking(response, thinking_opened)
    letters = [boxed or said for boxed, said in ANSWER.findall(text)]
    given = [letter for letter in letters if letter in LETTERS[:choices]]
    if not given:
        return Verdict(NO_ANSWER, why="no letter after 'Answer:' or in a box")
    return Verdict(RIGHT if given[-1] == gold else WRONG, given[-1])
