"""The teacher may see another context; the student's inputs and the response tokens stay what they are."""

import pytest
import torch

from training import tiny
from training.tiny import build, clone, ids, recorded, replay, tokenizer

CHAT_ROWS = [{"prompt": [{"role": "user", "content": text}]} for text in ("ab", "cd+e")]
HINT = [{"role": "system", "content": "1+2"}, {"role": "user", "content": "ab"}]


class Inputs:
    """Every `input_ids` a model was called with, cut to what is attended to."""

    def __init__(self, model):
        self.rows: list[list[int]] = []
        model.model.register_forward_pre_hook(self._remember, with_kwargs=True)

    def _remember(self, module, args, kwargs):
        for row, mask in zip(kwargs["input_ids"], kwargs["attention_mask"], strict=True):
            self.rows.append(row[mask.bool()].tolist())


@pytest.fixture
def seen(tmp_path, student, teacher):
    """Train one step and return what student and teacher were given."""

    def train(rows, **options):
        pupil, master = clone(student), clone(teacher)
        inputs = Inputs(pupil), Inputs(master)
        trainer = build(tmp_path, pupil, master, "opd", rows=rows, script=replay(recorded(8)), **options)
        trainer.rollout_stage._is_read_rightly = True  # its own passes are not looked at here
        trainer.train()
        return inputs[0].rows, inputs[1].rows

    return train


def render(messages, **options):
    return tokenizer().apply_chat_template(messages, add_generation_prompt=True, return_dict=True, **options)[
        "input_ids"
    ]


def test_by_default_both_see_the_same_rows(seen):
    ours, theirs = seen(CHAT_ROWS)
    assert theirs == ours[:8] == ours[8:]
    assert theirs == [[*render(CHAT_ROWS[n // 4]["prompt"]), *written] for n, written in enumerate(recorded(8))]


@pytest.mark.parametrize(
    ("rows", "options", "contexts"),
    [
        pytest.param(
            [row | {"teacher_prompt": HINT} for row in CHAT_ROWS], {}, [render(HINT)] * 2, id="privileged context"
        ),
        pytest.param(
            CHAT_ROWS,
            {"teacher_chat_template_kwargs": {"enable_thinking": True}},
            [render(row["prompt"], enable_thinking=True) for row in CHAT_ROWS],
            id="thinking teacher",
        ),
        pytest.param(
            CHAT_ROWS,
            {"teacher_chat_template": "{% for m in messages %}<{{ m['content'] }}>{% endfor %}"},
            [ids("<ab>"), ids("<cd+e>")],
            id="another template",
        ),
    ],
)
def test_only_the_teachers_context_differs(seen, rows, options, contexts):
    plain, _ = seen(CHAT_ROWS)
    ours, theirs = seen(rows, **options)
    assert ours == plain
    assert theirs == [[*contexts[n // 4], *written] for n, written in enumerate(recorded(8))]
    assert theirs != plain[:8]


def test_a_teacher_that_does_not_think_beside_a_student_that_does(seen):
    ours, theirs = seen(
        CHAT_ROWS,
        chat_template_kwargs={"enable_thinking": True},
        teacher_chat_template_kwargs={"enable_thinking": False},
    )
    assert ours[0] == [*render(CHAT_ROWS[0]["prompt"], enable_thinking=True), *recorded(8)[0]]
    assert theirs[0] == [*render(CHAT_ROWS[0]["prompt"]), *recorded(8)[0]]


def test_the_students_chat_options_hold_for_a_privileged_context_too(seen):
    rows = [row | {"teacher_prompt": HINT} for row in CHAT_ROWS]
    _, theirs = seen(rows, chat_template_kwargs={"enable_thinking": True})
    assert theirs[0] == [*render(HINT, enable_thinking=True), *recorded(8)[0]]


def test_the_teachers_own_template_renders_its_context(seen):
    own = tiny._tokenizer("abcdefghijklmnopqrstuvwxyz0123456789 =+;:?<>/.")
    own.chat_template = "{% for m in messages %}?{{ m['content'] }}{% endfor %}"
    _, theirs = seen(CHAT_ROWS, teacher_chat_template="teacher", trainer_options={"teacher_processing_class": own})
    assert theirs[0] == [*ids("?ab"), *recorded(8)[0]]


def test_a_plain_teacher_prompt_is_tokenised_like_a_plain_prompt(seen):
    rows = [{"prompt": p, "teacher_prompt": f"1+2;{p}"} for p in tiny.PROMPTS]
    ours, theirs = seen(rows)
    assert ours[0] == [*ids("ab="), *recorded(8)[0]]
    assert theirs[0] == [*ids("1+2;ab="), *recorded(8)[0]]


def test_a_row_without_a_teacher_prompt_uses_the_students(seen):
    _, theirs = seen([{"prompt": "ab=", "teacher_prompt": None}, {"prompt": "g=", "teacher_prompt": "1;g="}])
    assert theirs[0] == [*ids("ab="), *recorded(8)[0]]
    assert theirs[4] == [*ids("1;g="), *recorded(8)[4]]


def test_a_longer_context_changes_the_scores_and_not_the_tokens(tmp_path, student, teacher):
    def signals(rows):
        trainer = build(tmp_path, clone(student), clone(teacher), "opd", rows=rows, script=replay(recorded(8)))
        trainer.train()
        return trainer._buffered_inputs[0].signals

    plain, hinted = signals(CHAT_ROWS), signals([row | {"teacher_prompt": HINT} for row in CHAT_ROWS])
    assert torch.equal(plain.rollout_logp, hinted.rollout_logp)
    assert not torch.allclose(plain.teacher_logp, hinted.teacher_logp, atol=1e-3)


def test_the_teachers_template_without_its_tokenizer_is_refused(seen):
    with pytest.raises(
        ValueError, match="the teacher has no tokenizer; pass teacher_processing_class, or use 'student'"
    ):
        seen(CHAT_ROWS, teacher_chat_template="teacher")
