"""Several teachers: every row is scored by its own, and the scores stand in the order of the tokens."""

from dataclasses import fields

import pytest
import torch
from transformers import AutoModelForCausalLM

from tropd.proving_ground import pair
from tropd.teacher.local import LocalTeacher, TopKRequest
from tropd.teacher.several import SeveralTeachers

CONTEXTS = [[4, 5, 6], [7, 8], [4, 5, 6], [9, 10, 11, 12]]
RESPONSES = [[5, 6, 7, 8], [9], [8, 8], [4, 5, 6]]
SCORED = [[True, True, False, True], [True], [True, True], [True, False, True]]


@pytest.fixture(scope="module")
def teachers():
    folders = {"even": pair.teacher_path(), "odd": pair.student_path()}
    return {name: LocalTeacher(AutoModelForCausalLM.from_pretrained(path)) for name, path in folders.items()}


def score(teacher, rows, topk=None):
    return teacher.score(*([c[r] for r in rows] for c in (CONTEXTS, RESPONSES, SCORED)), pad_id=0, topk=topk)


def test_every_row_is_scored_by_its_own_teacher(teachers):
    several = SeveralTeachers(teachers, lambda context: "even" if len(context) % 2 == 0 else "odd")
    together = score(several, [0, 1, 2, 3])
    alone = [score(teachers["even" if row in (1, 3) else "odd"], [row]) for row in range(4)]
    torch.testing.assert_close(together.logp, torch.cat([part.logp for part in alone]))
    torch.testing.assert_close(together.entropy, torch.cat([part.entropy for part in alone]))


def test_the_top_k_is_asked_of_the_same_tokens_as_of_one_teacher(teachers):
    asked_for = torch.tensor([True, False, True, False, True, True, False, True])
    request = TopKRequest(k=3, vocab_limit=20, wanted=lambda logp, entropy, tokens: asked_for[tokens])
    one = teachers["even"]
    copies = SeveralTeachers({"a": one, "b": one}, lambda context: "a" if len(context) == 3 else "b")
    several, single = score(copies, range(4), request), score(one, range(4), request)
    for field in fields(single):
        if field.name not in ("hidden", "head"):
            torch.testing.assert_close(getattr(several, field.name), getattr(single, field.name))


def test_a_whole_distribution_is_refused_in_a_sentence(teachers):
    several = SeveralTeachers(teachers, lambda context: "even")
    with pytest.raises(ValueError, match="whole distribution"):
        several.score(CONTEXTS, RESPONSES, SCORED, pad_id=0, keep_hidden=True)
