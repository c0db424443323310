"""A probe sees what training would see, and training afterwards is as if it had never been."""

import inspect
import json
import random
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import TrainerCallback
from trl import GRPOTrainer

from preflight.rank_worker import measured
from torchrun import written_by
from training import tiny
from tropd.preflight import no_trace
from tropd.preflight.probe import _batches, probe

ROWS = [{"prompt": prompt} for prompt in tiny.PROMPTS]
CLOCKS = ("speed/", "step_time", "runtime", "per_second")


def build(tmp_path, method="tropd", **options):
    return tiny.build(tmp_path, tiny.llama(seed=1), tiny.qwen(seed=2, width=24), method, **options)


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    """A probe of recorded rollouts, and the trainer it was taken with."""
    recorded = tiny.recorded(12)
    trainer = build(tmp_path_factory.mktemp("probe"), script=tiny.replay(recorded[:8], recorded[8:]))
    return trainer, probe(trainer, ROWS[:3])


# ---------------------------------------------------------------------- what it sees


def test_rows_are_repeated_as_the_evaluation_sampler_does(probed):
    _, seen = probed
    prompts = [tiny.ids(row["prompt"]) for row in ROWS[:3]]
    assert [rollout.prompt_ids for rollout in seen.rollouts] == [ids for ids in prompts for _ in range(4)]
    assert [rollout.response for rollout in seen.rollouts] == tiny.recorded(12)
    assert seen.prompts.num_prompts == 3


def test_every_number_is_that_of_plain_models(probed):
    trainer, seen = probed
    ours, theirs = [], []
    for rollout in seen.rollouts:
        ours.append(tiny.plain_logps(trainer.model, rollout.prompt_ids, rollout.response))
        theirs.append(tiny.plain_logps(trainer.teacher.model, rollout.teacher_context, rollout.response))
    student, teacher = torch.cat(ours).detach(), torch.cat(theirs).detach()
    sampled = torch.tensor([token for rollout in seen.rollouts for token in rollout.response])[:, None]
    top = teacher.topk(seen.top_k)
    expected = {
        "student_logp": student.gather(-1, sampled)[:, 0],
        "trainer_logp": student.gather(-1, sampled)[:, 0],
        "student_entropy": -(student.exp() * student).sum(-1),
        "student_collision": student.exp().square().sum(-1),
        "student_topk_mass": student.gather(-1, top.indices).exp().sum(-1),
        "teacher_logp": teacher.gather(-1, sampled)[:, 0],
        "teacher_entropy": -(teacher.exp() * teacher).sum(-1),
        "teacher_topk_mass": top.values.exp().sum(-1),
    }
    for name, values in expected.items():
        torch.testing.assert_close(getattr(seen.tokens, name).double(), values, rtol=0, atol=2e-5)
    torch.testing.assert_close(seen.topk_mass_curve.double(), top.values.exp().cumsum(-1).mean(0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("ending_ids", [None, [tiny.EOS, 7, 9]])
def test_endings_are_those_of_plain_models_each_id_by_itself(tmp_path, ending_ids):
    recorded = tiny.recorded(4)
    models = tiny.llama(seed=1), tiny.llama(seed=2)
    trainer = tiny.build(tmp_path, *models, "opd", script=tiny.replay(recorded), ending_ids=ending_ids)
    seen = probe(trainer, ROWS[:1])
    known = ending_ids or [tiny.EOS]
    assert seen.endings.ids[: len(known)] == tuple(known) and seen.endings.pair.merged is (ending_ids is not None)
    ends, student, teacher = [], [], []
    for rollout in seen.rollouts:
        theirs = tiny.plain_logps(trainer.teacher.model, rollout.teacher_context, rollout.response)
        stop = theirs[:, known].logsumexp(-1, keepdim=True)
        others = theirs[:, [i for i in range(theirs.shape[-1]) if i not in known]]
        would = stop[:, 0] > others.amax(-1)
        last = torch.arange(len(would)) == (len(would) - 1 if rollout.ended else -1)
        ends.append(torch.stack([last, would], -1))
        teacher.append(theirs[:, seen.endings.ids].exp())
        ours = tiny.plain_logps(trainer.model, rollout.prompt_ids, rollout.response)
        student.append(ours[:, seen.endings.ids].exp())
    ends = torch.cat(ends)
    there = ends.any(-1)
    assert there.any()
    assert torch.equal(torch.stack([seen.endings.student_ends, seen.endings.teacher_ends], -1), ends[there])
    torch.testing.assert_close(seen.endings.student.double(), torch.cat(student)[there].double(), rtol=0, atol=2e-5)
    theirs = torch.cat(teacher)[there].double()
    beyond = seen.endings.teacher == 0  # its top 62 of 64 leave two tokens out
    assert theirs[beyond].numel() <= 2 and (theirs[beyond] < 0.01).all()
    torch.testing.assert_close(seen.endings.teacher[~beyond].double(), theirs[~beyond], rtol=0, atol=2e-5)


def test_tokens_know_their_rollout_and_their_place(probed):
    _, seen = probed
    places = [(row, place) for row, rollout in enumerate(seen.rollouts) for place in range(len(rollout.response))]
    assert list(zip(seen.tokens.rollout.tolist(), seen.tokens.position.tolist(), strict=True)) == places
    assert {len(getattr(seen.tokens, field.name)) for field in fields(seen.tokens)} == {len(places)}


def test_prompts_are_read_without_their_first_token(probed):
    trainer, seen = probed
    distinct = sorted({tuple(rollout.prompt_ids) for rollout in seen.rollouts})
    for model, found in ((trainer.model, "student_logp"), (trainer.teacher.model, "teacher_logp")):
        expected = torch.cat([tiny.plain_logp(model, list(ids[:1]), list(ids[1:])) for ids in distinct]).detach()
        torch.testing.assert_close(getattr(seen.prompts, found).double(), expected, rtol=0, atol=2e-5)


def test_times_and_counts_are_kept_for_an_estimate(probed):
    _, seen = probed
    times, responses = seen.times, tiny.recorded(12)
    assert (times.rows_per_rank, times.num_processes) == ((8, 4), 1)
    assert times.longest_responses == (max(map(len, responses[:8])), max(map(len, responses[8:])))
    assert times.response_tokens == times.scored_tokens == sum(map(len, responses))
    assert times.prompt_tokens == 4 * sum(len(tiny.ids(row["prompt"])) for row in ROWS[:3])
    assert min(times.rollout_seconds, times.student_seconds, times.teacher_seconds) > 0


def test_one_row_is_enough_and_none_is_refused(tmp_path):
    trainer = build(tmp_path, script=tiny.replay(tiny.recorded(4)), num_generations_eval=4)
    assert len(probe(trainer, ROWS[:1]).rollouts) == 4
    with pytest.raises(ValueError, match="rows is empty"):
        probe(trainer, [])


def test_a_student_that_is_not_sharded_yet_is_refused(tmp_path):
    trainer = build(tmp_path)
    trainer.is_fsdp_enabled = True
    with pytest.raises(ValueError, match=r"sharded by FSDP or DeepSpeed.*on_train_begin"):
        probe(trainer, ROWS)


def test_single_rollouts_are_probed_one_by_one(tmp_path):
    trainer = build(tmp_path, "opd", num_generations=1)
    assert [rollout.prompt_ids for rollout in probe(trainer, ROWS).rollouts] == [tiny.ids(p) for p in tiny.PROMPTS]


def test_the_teacher_reads_its_own_context(tmp_path):
    trainer = build(tmp_path, script=tiny.replay(tiny.recorded(4)))
    seen = probe(trainer, [{"prompt": "g=", "teacher_prompt": "xy="}])
    assert [rollout.teacher_context for rollout in seen.rollouts] == [tiny.ids("xy=")] * 4


@pytest.mark.parametrize(("ranks", "group", "rows"), [(1, 4, 3), (2, 4, 3), (8, 4, 1), (3, 2, 5), (4, 1, 6)])
def test_every_rank_has_as_many_rows_and_prompts_stay_whole(ranks, group, rows):
    inputs = [{"prompt": number} for number in range(rows)]

    def of_rank(rank):
        accelerator = SimpleNamespace(num_processes=ranks, process_index=rank)
        args = SimpleNamespace(generation_batch_size=8)
        return list(_batches(SimpleNamespace(num_generations_eval=group, accelerator=accelerator, args=args), inputs))

    batches = list(zip(*[of_rank(rank) for rank in range(ranks)], strict=True))
    assert {row["prompt"] for batch in batches for part in batch for row in part} == set(range(rows))
    for batch in batches:
        assert len({len(part) for part in batch}) == 1
        together = [row["prompt"] for part in batch for row in part]
        assert len(together) % group == 0
        assert all(len(set(together[i : i + group])) == 1 for i in range(0, len(together), group))


def test_two_ranks_see_what_one_sees(tmp_path):
    """Over gloo on the CPU, with recorded rollouts; both ranks have the whole probe."""
    out = written_by(2, Path(__file__).with_name("rank_worker.py"), tmp_path / "two")
    one = measured(tmp_path / "one", rank=0, world=1)
    for rank in (0, 1):
        two = json.loads((out / f"rank-{rank}.json").read_text())
        assert two.pop("positions") == [pytest.approx(bucket, abs=1e-5) for bucket in one["positions"]]
        assert two.pop("gradient") == pytest.approx(one["gradient"], rel=1e-5)
        ended, expected = two.pop("endings"), one["endings"]
        for use, other in zip(ended.pop("uses"), expected["uses"], strict=True):
            declared_by = use.pop("declared_by")
            assert declared_by == other["declared_by"]
            assert use == pytest.approx({name: other[name] for name in use}, abs=1e-5)
        assert ended == {name: expected[name] for name in ended}
        assert two == pytest.approx({key: one[key] for key in two}, abs=1e-5)


# ---------------------------------------------------------------------- leaving no trace


class ProbeAtStart(TrainerCallback):
    """Where a sharded student can be probed."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        assert len(probe(self.trainer, ROWS).rollouts) == 16


@pytest.mark.parametrize("method", ["tropd", "opd", "entropy_opd"])
def test_a_run_after_a_probe_is_the_run_without_one(tmp_path, method):
    """Real sampling, from the global random state that a probe could have moved."""

    def finished(name, before=False, at_start=False):
        rows = [{**row, "teacher_response": "xyz+"} for row in ROWS]
        trainer = build(tmp_path / name, method, rows=rows, max_steps=2)
        if before:
            probe(trainer, ROWS)
        if at_start:
            trainer.add_callback(ProbeAtStart(trainer))
        trainer.train()
        logs = [{k: v for k, v in log.items() if not any(c in k for c in CLOCKS)} for log in trainer.state.log_history]
        return tiny.weights_of(trainer.model), logs, trainer

    weights, logs, plain = finished("plain")
    weights_after, logs_after, after = finished("probed", before=True, at_start=method == "tropd")
    assert all(torch.equal(weights_after[name], weights[name]) for name in weights)
    assert logs_after == logs
    assert vars(after.guard) == vars(plain.guard)


def test_random_states_modes_metrics_and_logs_are_put_back(tmp_path):
    trainer = build(tmp_path)
    trainer._metrics["eval"]["kept"].append(1.0)
    trainer._logs["prompt"].append("kept")
    trainer.rollout_stage.evaluated_rows = 3
    trainer.model.train()
    trainer.model.model.layers[0].eval()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    first, second = probe(trainer, ROWS[:2]), probe(trainer, ROWS[:2])
    assert [r.response for r in first.rollouts] == [r.response for r in second.rollouts]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]
    assert trainer._metrics == {"train": {}, "eval": {"kept": [1.0]}}
    assert list(trainer._logs["prompt"]) == ["kept"]
    assert trainer.rollout_stage.evaluated_rows == 3
    assert trainer.model.training
    assert not trainer.model.model.layers[0].training
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_an_error_in_the_middle_leaves_no_trace_either(tmp_path):
    def broken(contexts):
        raise RuntimeError("the sampler is gone")

    trainer = build(tmp_path, script=broken)
    trainer.model.train()
    with pytest.raises(RuntimeError, match="the sampler is gone"):
        probe(trainer, ROWS)
    assert trainer.model.training
    assert trainer.rollout_stage._batch is None


def test_the_host_still_has_what_is_put_back():
    """Names of TRL's private state: a TRL that renames one must not be left with a trace in silence."""
    source = inspect.getsource(GRPOTrainer.__init__)
    assert all(f"self.{name} = " in source for name in {*no_trace.HOST_STATE, "num_generations_eval"})
