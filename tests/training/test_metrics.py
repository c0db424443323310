"""What is logged: every name is in the table, and the values are those that a hand would compute."""

import math

import pytest
import torch

from training import agents, tiny
from training.tiny import EOS, build, clone, groups, ids, plain_logp, plain_logps, recorded, replay, run
from tropd.objective.loss import TokenSignals
from tropd.teacher.local import TeacherScores
from tropd.training.logging.collect import (
    Totals,
    batch_metrics,
    rollout_metrics,
)
from tropd.training.logging.metrics import METRICS, METRICS_BY_BENCHMARK, METRICS_BY_TEACHER, as_markdown
from tropd.training.records import Rollout
from tropd.training.step import StudentScores

HOSTS = {"loss", "grad_norm", "learning_rate", "num_tokens", "step_time", "epoch", "step"}
"""What Transformers and TRL log in any run and we leave as it is."""

ROWS = [{"prompt": p, "teacher_response": "xyz+"} for p in tiny.PROMPTS]


class Alone:
    """The only rank, or beside it a table of another."""

    def __init__(self, other=0.0):
        self.other = other

    def sum(self, local):
        return local + self.other

    def gather_ragged(self, local):
        return local


alone = Alone()


# ---------------------------------------------------------------------- the table


def test_every_metric_is_defined_with_unit_health_and_trouble():
    table = METRICS | METRICS_BY_TEACHER | METRICS_BY_BENCHMARK
    assert all(all((m.name, m.unit, m.definition, m.healthy, m.trouble)) for m in table.values())
    assert as_markdown().count("\n") == len(table) + 2
    assert all(f"| `{name}` |" in as_markdown() for name in table)


def test_a_name_outside_the_table_is_refused():
    with pytest.raises(KeyError, match="made/up"):
        Totals().add("made/up", 1.0, 1)


def test_means_divide_by_the_global_count_and_absent_is_not_zero():
    first, second = Totals(), Totals()
    first.add("kl/k1", 6.0, 2)
    second.add("kl/k1", 1.0, 5)
    first.add("regions/num_trust", 0.0)
    both = first.collect(Alone(second._table))
    assert both == {"kl/k1": 1.0, "regions/num_trust": 0.0}


def test_values_of_weight_zero_may_be_anything():
    totals = Totals()
    totals.add_mean("kl/k1", torch.tensor([2.0, math.inf, math.nan]), torch.tensor([1.0, 0.0, 0.0]))
    assert totals.collect(alone) == {"kl/k1": 2.0}


# ---------------------------------------------------------------------- by hand


def test_four_tokens_by_hand():
    """Tokens 0–2 are the student's, with r = 0, −log 2, +1; token 3 is a prefix; 0 and 2 are trusted."""
    log_2 = math.log(2)
    student = StudentScores(
        rollout_logp=torch.tensor([-1.0, -2.0, -3.0, -4.0]),
        trainer_logp=torch.tensor([-1.0, -2.5, -3.0, -4.0]),
        sampler_logp=torch.tensor([-1.0, -2.0, math.nan, math.nan]),
        entropy=torch.tensor([1.0, 2.0, 3.0, 100.0]),
    )
    teacher = TeacherScores(
        logp=torch.tensor([-1.0, -2.0 - log_2, -2.0, -4.0]),
        entropy=torch.tensor([0.5, 0.5, 2.0, 100.0]),
        topk_index=torch.tensor([1]),
        topk_ids=torch.tensor([[7, 8]]),
        topk_logp=torch.tensor([[0.5, 0.25]]).log(),
    )
    signals = TokenSignals(
        rollout_logp=student.rollout_logp,
        teacher_logp=teacher.logp,
        trust_weight=torch.tensor([1.0, 0.0, 1.0, 0.0]),
        outlier_weight=torch.tensor([0.0, 1.0, 0.0, 0.0]),
        guidance_mask=torch.tensor([0.0, 0.0, 0.0, 1.0]),
    )
    totals = Totals()
    batch_metrics(totals, signals, student, teacher)
    assert totals.collect(alone) == pytest.approx(
        {
            "regions/num_trust": 2,
            "regions/num_outlier": 1,
            "regions/num_guidance": 1,
            "teacher/nonfinite_tokens": 0,
            "trust/fraction": (1 + 0.5 + 1) / 3,
            "trust/share": 2 / 3,
            "log_ratio/negative_share": 1 / 3,
            "kl/k1": (0 + log_2 - 1) / 3,
            "entropy/student": 2.0,
            "entropy/teacher": 1.0,
            "guidance/nll": 4.0,
            "sampler/logp_gap": 0.25,  # |−1 − −1| and |−2 − −2.5|, over the two tokens the sampler scored
            "teacher/topk_mass": 0.75,
            "log_ratio/p01": -log_2,
            "log_ratio/p50": 0.0,
            "log_ratio/p99": 1.0,
        }
    )


def test_lengths_and_endings_leave_the_prefix_out():
    rollouts = [
        Rollout(row=0, prompt_ids=[5], teacher_context=[5], response=[6, 7, 8, EOS], prefix_length=2, ended_by=EOS),
        Rollout(row=1, prompt_ids=[5], teacher_context=[5], response=[6, 6, 6], repetitive=True, included=False),
    ]
    totals = Totals()
    rollout_metrics(totals, rollouts)
    assert totals.collect(alone) == {
        "response/length": (2 + 3) / 2,
        "response/truncated_share": 0.5,
        "response/eos_share": 0.5,
        "response/repetitive_share": 0.5,
        "response/collapsed_share": 0.0,
        "response/excluded_share": 0.5,
        "guidance/prefix_length": 1.0,
    }


def test_tool_output_is_neither_scored_nor_counted_as_the_students():
    rollout = Rollout(
        row=0, prompt_ids=[5], teacher_context=[5], response=[6, 7, 8, 9], external=[False, True, True, False]
    )
    assert rollout.student_length == 2
    assert rollout.scored_positions() == [0, 3]


# ---------------------------------------------------------------------- through the trainer


def test_the_logged_values_are_those_of_the_models(tmp_path, student, teacher):
    done = run(tmp_path, student, teacher, "opd", script=replay(recorded(8)))
    ratios, student_entropy, teacher_entropy = [], [], []
    with torch.no_grad():
        for prompt, response in zip(groups(), recorded(8), strict=True):
            ratios.append(plain_logp(teacher, prompt, response) - plain_logp(student, prompt, response))
            for model, entropies in ((student, student_entropy), (teacher, teacher_entropy)):
                logps = plain_logps(model, prompt, response)
                entropies.append(-(logps.exp() * logps).sum(-1))
    r = torch.cat(ratios)
    ordered = r.sort().values
    expected = {
        "trust/fraction": r.clamp_max(0).exp().mean(),
        "log_ratio/negative_share": (r < 0).double().mean(),
        "log_ratio/p01": ordered[round(0.01 * (len(r) - 1))],
        "log_ratio/p50": ordered[round(0.5 * (len(r) - 1))],
        "log_ratio/p99": ordered[round(0.99 * (len(r) - 1))],
        "kl/k1": -r.mean(),
        "loss": -r.mean(),  # the ratio π_S/π_old is 1, so the surrogate's value is the K1 estimate
        "loss/trust": -r.mean(),
        "entropy/student": torch.cat(student_entropy).mean(),
        "entropy/teacher": torch.cat(teacher_entropy).mean(),
        "response/length": len(r) / 8,
        "response/eos_share": 0.5,
        "regions/num_trust": len(r),
    }
    logged = {name: done.logs[0][name] for name in expected}
    assert logged == pytest.approx({name: float(value) for name, value in expected.items()}, abs=1e-5)


@pytest.mark.parametrize("method", ["tropd", "jsd", "gkd", "eopd"])
def test_every_name_that_is_logged_is_in_the_table(tmp_path, student, teacher, method):
    logged = set().union(*run(tmp_path, student, teacher, method, rows=ROWS, max_steps=2).logs)
    assert logged - HOSTS <= METRICS.keys()
    assert not any(name.startswith(("completions/", "reward", "frac_reward")) for name in logged)


def test_every_metric_of_the_table_is_logged_by_some_run(tmp_path, student, teacher):
    """A row of the table that nothing logs would be a promise of the documentation that no one keeps."""
    script = replay(recorded(8))
    settings = {"max_steps": 2, "rows": ROWS, "reward_mixing_weight": 0.1, "fkl_top_k": 8}
    done = run(
        tmp_path,
        student,
        teacher,
        script=lambda contexts: (rows := script(contexts), [[-1.0] * len(row) for row in rows]),
        trainer_options={"reward_funcs": lambda completions, **_: [float(len(c)) for c in completions]},
        **settings,
    )
    other = clone(teacher)
    other.config.eos_token_id = 9
    apart = run(tmp_path / "apart", student, other, "tv_opd", script=replay(recorded(8)), ending="as_given")
    call = {"type": "function", "function": {"name": "calculator", "arguments": {"expression": "12+3"}}}
    episode = [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "calculator", "content": "15"},
        {"role": "assistant", "content": "It is 15."},
    ]
    rows = [{"prompt": agents.ASK, "teacher_response": episode}] * 4
    guided = {"guidance_schedule": "linear", "guidance_length": "share", "turn_trust": "weight", "max_steps": 4}
    guided |= {"max_tool_result_tokens": 9}
    turns = agents.build(tmp_path / "turns", agents.calls_then_answers, "tropd", rows=rows, **guided)
    turns.train()
    logged = set().union(*done.logs, *apart.logs, *turns.state.log_history)
    assert METRICS.keys() - logged == set()


def test_the_parts_of_the_loss_add_up_to_it(tmp_path, student, teacher):
    for entry in run(tmp_path, student, teacher, rows=ROWS, script=replay(recorded(8)), max_steps=3).logs:
        parts = sum(entry[f"loss/{part}"] for part in ("trust", "outlier", "guidance", "reward"))
        assert entry["loss"] == pytest.approx(parts, abs=1e-6)


def test_logging_every_second_step_averages_the_two(tmp_path, student, teacher):
    script = replay(recorded(8, seed=1), recorded(8, seed=2))
    each = run(tmp_path, student, teacher, "opd", script=script, max_steps=2).logs
    (both,) = run(tmp_path, student, teacher, "opd", script=script, max_steps=2, logging_steps=2).logs
    for name in ("loss", "loss/trust", "kl/k1", "trust/fraction", "response/length"):
        assert both[name] == pytest.approx((each[0][name] + each[1][name]) / 2, abs=1e-5)


# ---------------------------------------------------------------------- evaluation


def evaluated(directory, student, teacher, method="tropd", **settings):
    rows = [{"prompt": p} for p in tiny.PROMPTS]
    options = {"trainer_options": {"eval_dataset": tiny.same_dataset(rows)}, "rows": ROWS}
    trainer = build(directory, clone(student), clone(teacher), method, **options, **settings)
    return trainer, trainer.evaluate()


def test_an_evaluation_logs_its_metrics_with_their_prefix(tmp_path, student, teacher):
    trainer, _ = evaluated(tmp_path, student, teacher, per_device_eval_batch_size=8)
    (logged,) = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    ours = {name.removeprefix("eval_") for name in logged if "/" in name}
    assert ours <= METRICS.keys()
    assert {"trust/fraction", "response/length", "loss/trust", "kl/k1"} <= ours
    assert logged["eval_guidance/prefix_length"] == 0, "an evaluation is on-policy"
    assert not any(name.startswith(("eval_completions/", "eval_reward", "eval_frac_reward")) for name in logged)


def test_the_parts_of_an_evaluations_loss_add_up_whatever_its_batches(tmp_path, student, teacher):
    trainer, results = evaluated(tmp_path, student, teacher, per_device_eval_batch_size=4)
    (logged,) = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    parts = sum(logged[f"eval_loss/{part}"] for part in ("trust", "outlier", "guidance", "reward"))
    assert results["eval_loss"] == pytest.approx(parts, abs=1e-5)


def test_an_evaluation_during_training_leaves_the_training_metrics_alone(tmp_path, student, teacher):
    script = replay(recorded(8))
    options = {"trainer_options": {"eval_dataset": tiny.same_dataset()}, "per_device_eval_batch_size": 8}
    settings = {"max_steps": 2, "script": script}
    plain = run(tmp_path, student, teacher, "opd", **settings).logs
    beside = run(tmp_path, student, teacher, "opd", eval_strategy="steps", eval_steps=1, **settings, **options).logs
    clock = ("speed/", "step_time", "num_tokens")
    for ours, theirs in zip(plain, beside, strict=True):
        assert {k: v for k, v in ours.items() if not k.startswith(clock)} == {
            k: v for k, v in theirs.items() if not k.startswith(clock)
        }


def test_an_evaluation_with_its_own_number_of_rollouts(tmp_path, student, teacher):
    trainer, results = evaluated(
        tmp_path, student, teacher, num_generations=1, num_generations_eval=2, per_device_eval_batch_size=4
    )
    assert math.isfinite(results["eval_loss"])
    # Four prompts, two rollouts each, four rows a batch.
    assert [[batch[0], batch[2]] for batch in trainer.contexts_seen] == [[b[1], b[3]] for b in trainer.contexts_seen]
    assert sorted(context for batch in trainer.contexts_seen for context in batch[::2]) == sorted(
        map(ids, tiny.PROMPTS)
    )
