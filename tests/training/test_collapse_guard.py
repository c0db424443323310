"""The collapse guard: a run whose rollouts no longer end is stopped in words, whatever the method and the prefixes.

End to end on the shipped pair, its teacher rewritten to end with id 3, and each ending left an action of its own: then
every method teaches the student not to stop, or to stop where nothing ends.
"""

import json
import math

import pytest
from transformers import AutoModelForCausalLM, TrainerCallback

import shipped
from training import tiny
from training.tiny import EOS, build, clone, replay
from tropd.comparison.other_ending import write_with_ending
from tropd.training.guards.errors import RolloutsCollapsed
from tropd.training.guards.step_guards import CollapseGuard
from tropd.training.logging.collect import ROOM_TO_END, ended_share
from tropd.training.records import Rollout

ENDED = [[9, 8, 7, 6, EOS]] * 8
CUT = [[9, 8, 7, 6, 5, 4, 10, 11, 12, 13]] * 8
"""As long as a tiny run's budget, without an ending, and no repetition."""


def observed(*ended, share=0.9, patience=3, before=0.0, collapsed=0.0):
    guard = CollapseGuard(share, patience, before)
    for step in ended:
        guard.observe(collapsed, step)
    return guard


# ---------------------------------------------------------------------- what counts


@pytest.mark.parametrize(
    ("ended", "tripped"),
    [
        pytest.param([1.0, 0.0, 0.0, 0.0], True, id="ended once, and no longer"),
        pytest.param([1.0, 0.1, 0.05, 0.1], True, id="a tenth may go on ending"),
        pytest.param([1.0, 0.11, 0.11, 0.11], False, id="but not more"),
        pytest.param([1.0, 0.0, 0.0], False, id="not yet for long"),
        pytest.param([1.0, 0.0, 0.0, 0.5, 0.0, 0.0], False, id="it began to end again"),
        pytest.param([0.0, 0.0, 0.0, 0.0], False, id="never ended"),
        pytest.param([0.49, 0.0, 0.0, 0.0], False, id="most never ended"),
        pytest.param([0.5, 0.0, 0.0, 0.0], True, id="half once did"),
        pytest.param([None, None, None, None], False, id="none had room to end"),
        pytest.param([0.2, 0.9, 0.0, 0.0, 0.0], True, id="it learned to end before it forgot"),
    ],
)
def test_steps_count_whose_rollouts_end_no_longer_though_most_once_did(ended, tripped):
    assert observed(*ended).tripped is tripped


@pytest.mark.parametrize(
    ("ended", "tripped"),
    [
        pytest.param([0.0, 0.5, 0.0, 0.0, 0.0, 0.0], False, id="two of four by chance"),
        pytest.param([1.0, 1.0, 0.0, 0.0, 0.0, 0.0], True, id="eight of sixteen"),
        pytest.param([1.0, 0.75, 0.0, 0.0, 0.0, 0.0], False, id="seven of sixteen"),
        pytest.param([1.0, 0.0, 0.0, 0.0], False, id="fewer than sixteen say nothing"),
        pytest.param([0.0] * 9 + [0.5, 0.5, 0.5, 0.5, 0.0, 0.0, 0.0], True, id="of the last sixteen, not of all"),
    ],
)
def test_steps_of_few_rollouts_are_taken_together(ended, tripped):
    guard = CollapseGuard(0.9, 3)
    for share in ended:
        guard.observe(0.0, share, rollouts=4)
    assert guard.tripped is tripped


@pytest.mark.parametrize(
    ("steps", "tripped"),
    [
        pytest.param([(0.9, 1.0), (0.8, 0.9), *[(0.6 - i / 10, 0.0) for i in range(5)]], False, id="annealed away"),
        pytest.param([(0.5, 1.0), *[(0.5, 0.0)] * 3], True, id="the same prefixes"),
        pytest.param([(0.0, 1.0), *[(0.5, 0.0)] * 3], True, id="the student's own once ended"),
        pytest.param([(0.5, 1.0), (0.0, 0.0), (0.0, 0.0), (0.0, 0.0)], False, id="its own never did"),
    ],
)
def test_endings_after_a_longer_prefix_say_nothing_of_those_after_a_shorter(steps, tripped):
    """A guided run of responses longer than the budget was once stopped, whose unguided rollouts had never ended."""
    guard = CollapseGuard(0.9, 3)
    for guidance, share in steps:
        guard.observe(0.0, share, guidance=guidance)
    assert guard.tripped is tripped


def test_rollouts_that_pass_the_teachers_ending_need_not_have_ended_before():
    guard = CollapseGuard(0.9, 3)
    for alpha in (0.9, 0.8, 0.7):
        guard.observe(0.0, 0.05, unheeded_share=0.5, guidance=alpha)
    assert guard.tripped
    guard = CollapseGuard(0.9, 3)
    for alpha in (0.9, 0.8, 0.7):
        guard.observe(0.0, 0.05, unheeded_share=0.49, guidance=alpha)
    assert not guard.tripped


def test_what_was_seen_before_training_counts_as_having_ended():
    assert observed(0.0, 0.0, 0.0, before=0.5).tripped
    assert not observed(0.0, 0.0, 0.0, before=0.49).tripped


def test_collapsed_rollouts_and_endless_ones_count_in_one_row():
    guard = observed(1.0, 0.0)
    guard.observe(0.95, 0.9)
    assert guard.steps_in_a_row == 2
    guard.observe(0.0, 0.05)
    assert guard.tripped


def test_a_step_in_which_none_had_room_says_nothing():
    assert observed(1.0, 0.0, None, 0.0, None, 0.0).tripped


def test_without_patience_it_never_trips():
    assert not observed(1.0, *[0.0] * 50, patience=None).tripped


# ---------------------------------------------------------------------- what it says


def said(unheeded):
    guard = observed(1.0, 0.0, 0.0)
    guard.observe(0.0, 0.0, unheeded)
    return guard.sentence(12, "runs/a")


def test_the_sentence_says_when_what_and_where():
    assert said(0.0) == (
        "stopped at step 12: in each of the last 3 steps at least 90% of the rollouts were empty, only repeated "
        "themselves, or no longer ended. The checkpoint of this step is in runs/a; lower the learning rate, or start "
        "from an earlier checkpoint. (collapse_share, collapse_patience)"
    )


def test_the_sentence_knows_rollouts_that_ran_past_the_teachers_ending():
    assert "up to 62% of a step's rollouts wrote the teacher's ending and continued after it" in said(0.62)
    assert "train with ending one_action" in said(0.5) and "learning rate" not in said(0.5)
    assert "one_action" not in said(0.49) and "learning rate" in said(0.49)


# ---------------------------------------------------------------------- which rollouts have room to end


def rollout(written: int, ended: bool, prefix: int = 0) -> Rollout:
    response = [*[9] * (prefix + written - ended), *[EOS] * ended]
    return Rollout(0, [5], [5], response, prefix, ended_by=EOS if ended else None)


@pytest.mark.parametrize(
    ("rollouts", "share"),
    [
        pytest.param([rollout(4, True), rollout(10, False)], 0.5, id="without a prefix all count"),
        pytest.param([rollout(2, False, prefix=8)], None, id="cut where the prefix left two tokens"),
        pytest.param([rollout(ROOM_TO_END - 1, False, prefix=8)], None, id="just short of room"),
        pytest.param([rollout(ROOM_TO_END, False, prefix=8)], 0.0, id="just room enough"),
        pytest.param([rollout(2, True, prefix=8), rollout(ROOM_TO_END, False, prefix=8)], 0.5, id="both"),
    ],
)
def test_a_rollout_that_a_prefix_left_no_room_says_nothing(rollouts, share):
    assert ended_share(rollouts, unheeded=(), budget=128, sum_over_ranks=lambda counts: counts) == share


# ---------------------------------------------------------------------- in a run, scripted


def scripted(tmp_path, student, teacher, *batches, steps=9, **settings):
    settings = {"max_steps": steps, "collapse_patience": 3} | settings
    return build(tmp_path, clone(student), clone(teacher), "opd", script=replay(*batches), **settings)


def test_rollouts_that_are_cut_from_the_start_stop_nothing(tmp_path, student, teacher):
    """The budget may be short."""
    trainer = scripted(tmp_path, student, teacher, CUT, steps=6)
    trainer.train()
    assert trainer.state.global_step == 6 and trainer.guard.best_ended_share == 0


def test_unless_they_ended_before_training(tmp_path, student, teacher):
    trainer = scripted(tmp_path, student, teacher, CUT)
    trainer.expect_endings(0.8)
    trainer.expect_endings(0.3)
    assert trainer.guard.best_ended_share == 0.8, "the better of two looks: several teachers' prompts are looked at"
    with pytest.raises(RolloutsCollapsed, match="stopped at step 3"):
        trainer.train()
    assert (tmp_path / "checkpoint-3" / "model.safetensors").is_file()


def test_what_was_expected_is_expected_of_each_run_of_a_trainer(tmp_path, student, teacher):
    trainer = scripted(tmp_path, student, teacher, ENDED, ENDED, steps=2)
    trainer.expect_endings(0.6)
    trainer.train()
    assert trainer.guard.best_ended_share == 1
    trainer._forget_what_was_begun()
    assert (trainer.guard.best_ended_share, trainer.guard.steps_in_a_row, trainer.guard.recent) == (0.6, 0, [])


def test_an_evaluation_is_no_step(tmp_path, student, teacher):
    options = {"trainer_options": {"eval_dataset": tiny.same_dataset()}, "per_device_eval_batch_size": 8}
    trainer = scripted(tmp_path, student, teacher, CUT, **options)
    trainer.expect_endings(1.0)
    for _ in range(4):
        trainer.evaluate()
    assert trainer.guard.steps_in_a_row == 0


@pytest.mark.parametrize("checkpoint", [1, 3])
def test_a_resumed_run_is_stopped_where_the_uninterrupted_one_was(tmp_path, student, teacher, checkpoint):
    saving = {"save_strategy": "steps", "save_steps": 1}
    whole = scripted(tmp_path / "whole", student, teacher, ENDED, *[CUT] * 9, **saving)
    with pytest.raises(RolloutsCollapsed, match="stopped at step 4"):
        whole.train()
    folder = tmp_path / "whole" / f"checkpoint-{checkpoint}"
    guard = json.loads((folder / "tropd_state.json").read_text())["guard"]
    best, recent = {1: (0.0, [[1.0, 8]]), 3: (0.5, [[0.0, 8], [0.0, 8]])}[checkpoint]
    unguided = {"guidance": 0.0, "best_guided_share": 0.0}
    assert guard == {"steps_in_a_row": checkpoint - 1, "best_ended_share": best, "recent": recent} | unguided
    resumed = scripted(tmp_path / "resumed", student, teacher, CUT, **saving)
    with pytest.raises(RolloutsCollapsed, match="stopped at step 4: in each of the last 3 steps"):
        resumed.train(resume_from_checkpoint=str(folder))


LONG, SHORT = "xyz+" * 12, "xyz+"
"""Teacher responses that do not fit into 24 tokens, and ones that do."""
ENDLESS = [9, 8, 7, 6, 5, 4, 10, 11, 12, 13] * 3


def guided(tmp_path, student, teacher, responses, script, **settings):
    """Sixteen rollouts a step, of four prompts with these responses, within 24 tokens."""
    prompts = [f"{number}+b=" for number in range(len(responses))]
    rows = [{"prompt": p, "teacher_response": r} for p, r in zip(prompts, responses, strict=True)]
    size = {"max_steps": 12, "max_completion_length": 24, "per_device_train_batch_size": 16, "collapse_patience": 3}
    return build(tmp_path, clone(student), clone(teacher), "tropd", script=script, rows=rows, **(size | settings))


def test_a_guided_run_is_stopped_by_the_rollouts_that_had_room(tmp_path, student, teacher):
    """Half of the prompts have a response that leaves a token of the budget."""
    script = replay([ENDLESS] * 16)
    trainer = guided(tmp_path, student, teacher, [LONG, SHORT] * 8, script, guidance_schedule="constant")
    trainer.expect_endings(1.0)
    with pytest.raises(RolloutsCollapsed, match="stopped at step 3"):
        trainer.train()


def test_one_in_which_none_has_room_is_not(tmp_path, student, teacher):
    script = replay([ENDLESS] * 16)
    trainer = guided(tmp_path, student, teacher, [LONG] * 16, script, guidance_schedule="constant", max_steps=4)
    trainer.expect_endings(1.0)
    trainer.train()
    assert trainer.state.global_step == 4


def test_a_quarter_that_ends_where_the_others_have_no_room_is_no_majority(tmp_path, student, teacher):
    """A budget that the teacher itself does not keep to: a run that learns from the first tokens of each response."""
    first = [[20, EOS]] * 4 + [ENDLESS] * 12
    script = replay(first, *[[ENDLESS] * 16] * 11)
    trainer = guided(tmp_path, student, teacher, [SHORT, *[LONG] * 47], script)
    trainer.train()
    assert trainer.state.global_step == 12


# ---------------------------------------------------------------------- in a run, as it happens


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """The shipped teacher, ending with id 3."""
    folder = tmp_path_factory.mktemp("models") / "other"
    write_with_ending(shipped.teacher_path(), "<unk>", folder)
    return str(folder)


BATCH, STEPS = 16, 20


def real(tmp_path, teacher, method, *, given=False, seed=2, callbacks=(), **settings):
    """Four sums of two numbers a step, four rollouts each; a learning rate that shows in ten steps what it does.

    Args:
        given: the data have a right working for each prompt; else the teacher writes the prefixes.
    """
    problems = shipped.sums_of_two(BATCH // 4 * STEPS, seed)
    rows = [{"prompt": p["prompt"]} | ({"teacher_response": p["solution"]} if given else {}) for p in problems]
    size = {"per_device_train_batch_size": BATCH, "max_completion_length": 40, "max_steps": STEPS}
    settings = size | {"learning_rate": 1e-2, "max_grad_norm": 1.0, "seed": seed} | settings
    options = {"trainer_options": {"processing_class": None}, "callbacks": callbacks, "rows": rows}
    return build(tmp_path, str(shipped.student_path()), teacher, method, **options, **settings)


slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("method", "given"),
    [
        ("tropd", True),
        pytest.param("tropd", False, marks=slow),
        pytest.param("tropd_share", True, marks=slow),
        pytest.param("tropd_share", False, marks=slow),
        pytest.param("fkl_outlier", False, marks=slow),
    ],
)
def test_a_run_that_teaches_an_ending_at_which_nothing_ends_is_stopped(tmp_path, other, method, given):
    """`tropd` once went on to 97% of responses cut, and exited as if nothing had happened."""
    trainer = real(tmp_path, other, method, given=given, ending="as_given")
    if method == "tropd_share":
        trainer.expect_endings(0.98)  # as `tropd train` does, from its preflight
    with pytest.raises(RolloutsCollapsed) as stop:
        trainer.train()
    step = trainer.state.global_step
    assert 5 < step < 15, "as soon as the patience of five steps allows, or a little later"
    assert f"stopped at step {step}: in each of the last 5 steps at least 90% of the rollouts" in str(stop.value)
    assert "wrote the teacher's ending and continued after it" in str(stop.value)
    assert "train with ending one_action" in str(stop.value)
    kept = AutoModelForCausalLM.from_pretrained(tmp_path / f"checkpoint-{step}")
    assert tiny.largest_difference(dict(kept.named_parameters()), tiny.weights_of(trainer.model)) == 0


@pytest.mark.parametrize("repeats", [0, 8])
def test_prefixes_of_responses_beyond_the_budget_stop_no_student_that_ends_without_them(tmp_path, repeats):
    """It does not change here; its own responses end, and behind such prefixes not even the teacher's would."""
    rows = [
        {"prompt": p["prompt"], "teacher_response": f"{p['solution'].splitlines()[0]}\n" * repeats + p["solution"]}
        for p in shipped.sums_of_two(BATCH // 4 * 7, 2)
    ]
    trainer = build(
        tmp_path,
        str(shipped.student_path()),
        str(shipped.teacher_path()),
        "tropd",
        rows=rows,
        per_device_train_batch_size=BATCH,
        max_completion_length=40,
        max_steps=7,
        learning_rate=1e-9,
        guidance_schedule="constant",
        guidance_min_tail=8,
        trainer_options={"processing_class": None},
    )
    trainer.expect_endings(1.0)
    stage, endless = trainer.rollout_stage, []
    roll_out = stage.roll_out
    stage.roll_out = lambda *given: endless.append(sum(p.is_endless for p in given[2])) or roll_out(*given)
    trainer.train()
    assert trainer.state.global_step == 7 and trainer.guard.steps_in_a_row == 0
    assert endless[-1] == (BATCH if repeats else 0)


@slow
@pytest.mark.parametrize("method", ["tropd", "tropd_share", "tropd_clip"])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_it_is_stopped_too_while_prefixes_leave_twenty_tokens(tmp_path, other, method, schedule):
    """`tropd_clip` unlearns its own ending, and does not learn the teacher's: while prefixes get shorter, only a look
    before training can tell.
    """
    trainer = real(tmp_path, other, method, given=True, ending="as_given", guidance_schedule=schedule)
    if (method, schedule) == ("tropd_clip", "cosine"):
        trainer.expect_endings(0.98)
    with pytest.raises(RolloutsCollapsed) as stop:
        trainer.train()
    assert ("train with ending one_action" in str(stop.value)) == (method != "tropd_clip")


@slow
@pytest.mark.parametrize("method", ["tropd", "tropd_share", "tropd_clip"])
def test_it_is_stopped_too_where_prefixes_never_leave_more_room_than_an_ending_needs(tmp_path, other, method):
    """The teacher's responses have up to 28 tokens, and the student is left 3 to 14, of which an ending takes 2."""
    settings = {"guidance_schedule": "constant", "max_completion_length": 29}
    trainer = real(tmp_path, other, method, given=True, ending="as_given", **settings)
    with pytest.raises(RolloutsCollapsed):
        trainer.train()


class Endings(TrainerCallback):
    """Shares of ended rollouts, step by step."""

    def __init__(self):
        self.shares = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.shares += [logs["response/eos_share"]] if "loss" in logs else []


@pytest.mark.parametrize("method", ["tropd", pytest.param("tropd_share", marks=slow)])
def test_the_same_run_with_one_action_goes_through(tmp_path, other, method):
    endings = Endings()
    # A rate at which a run that goes well learns steadily: at that of the runs above its own responses come and go.
    trainer = real(tmp_path, other, method, given=True, callbacks=[endings], learning_rate=3e-3)
    trainer.train()
    assert trainer.state.global_step == STEPS and math.isfinite(trainer.state.log_history[-1]["train_loss"])
    assert sum(endings.shares[-5:]) / 5 > 0.8
    assert trainer.guard.steps_in_a_row == 0 and trainer.guard.best_ended_share > 0.8
