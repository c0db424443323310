"""What fails beside the teacher: rewards, the student's memory, the preflight, the evaluation's data."""

import asyncio
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset

from training.test_faults import (
    KEPT,
    assert_it_goes_on_as_if_nothing_had_happened,
    broken,
    changed,
    deadly,
    fields,
    metrics,
    on_call,
    raising,
    steps_saved,
)
from training.tiny import ROWS, TrainerCallback
from tropd.cli.main import main
from tropd.preflight import probe
from tropd.teacher.local import LocalTeacher
from tropd.training import step
from tropd.training.guards import faults
from tropd.training.guards.errors import DataFailed, OutOfMemory, RewardFailed, TeacherFailed, TrainingStopped
from tropd.training.guards.faults import TRAINED_ROWS, WRITING, enough_memory, is_out_of_memory

NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


# ---------------------------------------------------------------------- the rewards


def failing_at(call, error):
    """A reward function that raises `error` when it is asked for the `call`-th time."""
    calls = []

    def exactness(completions, **columns):
        calls.append(1)
        if len(calls) == call:
            raise error
        return [float(len(completion)) for completion in completions]

    return exactness


def brevity(completions, **columns):
    return [-float(len(completion)) for completion in completions]


def test_a_reward_that_raises_stops_the_run_before_the_step_and_is_named(train, tmp_path):
    error = KeyError("answer")
    with pytest.raises(
        RewardFailed,
        match=rf"^the reward function exactness failed in step 2 \(KeyError: 'answer'\), so noth.*{KEPT}\. Fix",
    ) as caught:
        train(options={"reward_funcs": [brevity, failing_at(2, error)]})
    assert caught.value.__cause__ is error and isinstance(caught.value, TrainingStopped)
    assert "\n" not in str(caught.value) and "resume_from_checkpoint" in str(caught.value)
    assert steps_saved(tmp_path / "run") == [1] and len(metrics(tmp_path / "run")) == 1
    options = {"reward_funcs": [brevity, failing_at(0, error)]}
    assert_it_goes_on_as_if_nothing_had_happened(train, tmp_path, options=options)


class Judge:
    """A reward that is neither a function nor a model."""

    __name__ = "judge"

    def __call__(self, completions, **columns):
        raise RuntimeError("no verdict")


async def jury(completions, **columns):
    await asyncio.sleep(0)
    raise RuntimeError("no verdict")


@pytest.mark.parametrize("reward", [Judge(), jury], ids=["callable", "asynchronous"])
def test_any_kind_of_reward_is_named(train, reward):
    with pytest.raises(RewardFailed, match=rf"{reward.__name__} failed in step 1 \(RuntimeError: no verdict\)"):
        train(options={"reward_funcs": [reward, brevity]})


def test_a_reward_of_another_length_is_refused_with_the_hosts_reason(train):
    def short(completions, **columns):
        return [0.0]

    with pytest.raises(RewardFailed, match=r"'short' returned 1 rewards, but 8 were expected.*no checkpoint yet"):
        train(options={"reward_funcs": [short]})


def test_a_reward_that_has_no_memory_is_told_what_to_lower(train):
    with pytest.raises(RewardFailed, match=r"exactness failed in step 1 \(OutOfMemoryError.*Lower per_device_train_b"):
        train(options={"reward_funcs": [failing_at(1, NO_MEMORY)]})


def test_an_evaluation_whose_reward_raises_says_so(train):
    trainer = train(max_steps=1, options={"reward_funcs": [failing_at(2, ValueError("no answer"))]})
    with pytest.raises(RewardFailed, match=r"exactness failed in the evaluation after step 1 \(ValueError: no ans"):
        trainer.evaluate(Dataset.from_list(ROWS[:2]))


def test_an_interruption_in_a_reward_is_no_fault_of_it(train):
    with pytest.raises(KeyboardInterrupt):
        train(options={"reward_funcs": [failing_at(1, KeyboardInterrupt())]})


def test_a_process_that_is_lost_while_rewards_are_gathered_is_no_fault_of_a_reward():
    lost = RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer")
    with pytest.raises(RuntimeError) as caught, faults.reward_guard([("brevity", brevity)], "step 1", "nowhere"):
        raise lost
    assert caught.value is lost


# ---------------------------------------------------------------------- the student's memory


def without_memory(method, call=2):
    """`method`, which finds no memory when it is called for the `call`-th time."""
    calls = []

    def asked(*arguments, **options):
        calls.append(1)
        if len(calls) == call:
            raise NO_MEMORY
        return method(*arguments, **options)

    return asked


class NoMemoryForTheUpdate(TrainerCallback):
    """The optimiser finds no room for its state, as it happens on a second step."""

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == 1:
            raise NO_MEMORY


LEARNING = r"Lower per_device_train_batch_size .*, or set gradient_checkpointing: true, and continue with"


@pytest.mark.parametrize(
    ("name", "when", "advice"),
    [
        (
            "_generate_single_turn",
            "step 2 while the student wrote",
            "Lower rollout_batch_size or max_completion_length and",
        ),
        (
            "score_student",
            "step 2 while the student was scored",
            r"Lower per_device_train_batch_size \(and raise gradient_accumulation_steps\) or max_completion_length and",
        ),
        ("_compute_loss", "step 2", LEARNING),
        ("the update", "step 2", LEARNING),
    ],
)
def test_a_student_without_memory_stops_with_what_to_lower(train, tmp_path, monkeypatch, name, when, advice):
    settings = {"rescore_rollouts": True} if name == "score_student" else {}
    callbacks = [NoMemoryForTheUpdate()] if name == "the update" else []

    def prepare(trainer):
        owner = step if name == "score_student" else trainer
        if hasattr(owner, name):
            patched.setattr(owner, name, without_memory(getattr(owner, name)))

    with (
        monkeypatch.context() as patched,
        pytest.raises(
            OutOfMemory, match=rf"^memory ran out in {when} \(OutOfMemoryError: CUDA out of.*\); {KEPT}\. {advice}"
        ) as caught,
    ):
        train(prepare=prepare, callbacks=callbacks, **settings)
    assert caught.value.__cause__ is NO_MEMORY and isinstance(caught.value, TrainingStopped)
    assert steps_saved(tmp_path / "run") == [1]
    assert_it_goes_on_as_if_nothing_had_happened(train, tmp_path, **settings)


def test_checkpointing_that_is_on_is_not_advised(train):
    with pytest.raises(OutOfMemory) as caught:
        train(callbacks=[NoMemoryForTheUpdate()], gradient_checkpointing=True)
    assert "per_device_train_batch_size" in str(caught.value) and "gradient_checkpointing" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "when"),
    [
        ("_build_batch", ""),
        ("_compute_loss", ""),
        ("score_student", " while the student was scored"),
    ],
)
def test_an_evaluation_without_memory_is_told_of_its_own_batch_size(train, monkeypatch, name, when):
    trainer = train(max_steps=1, rescore_rollouts=True)
    owner = step if name == "score_student" else trainer
    monkeypatch.setattr(owner, name, without_memory(getattr(owner, name), call=1))
    with pytest.raises(
        OutOfMemory,
        match=rf"^memory ran out in the evaluation after step 1{when}.*Lower per_device_eval_batch_size",
    ):
        trainer.evaluate(Dataset.from_list(ROWS[:2]))


@pytest.mark.parametrize(
    ("use_vllm", "addressed", "field"),
    [
        (True, False, "vllm_gpu_memory_utilization"),
        (False, True, "rollout_batch_size"),
        (False, False, "per_device_train_batch_size"),
    ],
)
def test_what_lowers_the_memory_of_rollouts_is_advised(use_vllm, addressed, field):
    args = SimpleNamespace(use_vllm=use_vllm, output_dir="nowhere", addresses_sampling=lambda: addressed)
    with (
        pytest.raises(OutOfMemory, match=rf"in step 3 while the student wrote .*Lower {field} or"),
        enough_memory(WRITING, lambda: "step 3", args, TRAINED_ROWS),
    ):
        raise NO_MEMORY


@pytest.mark.parametrize(
    ("error", "lacks"),
    [
        (NO_MEMORY, True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("memory"), False),
    ],
)
def test_a_lack_of_memory_is_recognised(error, lacks):
    assert is_out_of_memory(error) == lacks


def test_what_is_no_lack_of_memory_is_left_as_it_is(train):
    error = ValueError("ours to mend")

    class Failing(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise error

    with pytest.raises(ValueError) as caught:
        train(callbacks=[Failing()])
    assert caught.value is error


# ---------------------------------------------------------------------- the preflight


@pytest.mark.parametrize("call", [1, 2], ids=["rollouts", "prompts"])
def test_a_teacher_that_fails_in_the_preflight_is_a_sentence(train, call):
    trainer = train(max_steps=1)
    error = ConnectionError("refused")
    on_call(call, raising(error))(trainer)
    with pytest.raises(
        TeacherFailed,
        match=r"^the teacher failed in the preflight \(ConnectionError: refused\), so nothing was learned from it; "
        r"no step was taken\. Check that the teacher can be reached and start again\.$",
    ) as caught:
        probe.probe(trainer, ROWS[:2])
    assert caught.value.__cause__ is error and not trainer.in_preflight


def test_a_teacher_that_gives_too_few_scores_in_the_preflight_is_refused_with_both_counts(train):
    trainer = train(max_steps=1)
    on_call(1, lambda scores: changed(scores, logp=scores.logp[:-1]))(trainer)
    with pytest.raises(TeacherFailed, match=r"gave \d+ values of logp for the \d+ tokens of the preflight.*no step"):
        probe.probe(trainer, ROWS[:2])


@pytest.mark.parametrize(
    ("owner", "name", "call", "when"),
    [
        ("trainer", "_generate_single_turn", 1, "wrote"),
        (step, "score_student", 1, "was scored"),
        (probe, "scan_vocabulary", 1, "was scored"),
        (probe, "score_student", 1, "was scored"),
    ],
)
def test_a_student_without_memory_in_the_preflight_is_a_sentence(train, monkeypatch, owner, name, call, when):
    trainer = train(max_steps=1)
    owner = trainer if owner == "trainer" else owner
    monkeypatch.setattr(owner, name, without_memory(getattr(owner, name), call))
    with pytest.raises(
        OutOfMemory, match=rf"^memory ran out in the preflight while the student {when} .*no step was taken\. Lower "
    ) as caught:
        probe.probe(trainer, ROWS[:2])
    assert str(caught.value).endswith("and start again.") and "per_device_eval" not in str(caught.value)


def test_the_command_line_says_what_failed_in_the_preflight_and_leaves_with_code_2(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(LocalTeacher, "score", without_memory(LocalTeacher.score, call=1))
        assert main(["train", *fields(tmp_path), "--preflight_prompts", "2"]) == 2
    printed = " ".join(capfd.readouterr().err.split())
    assert "error: the teacher failed in the preflight (OutOfMemoryError: CUDA out of memory" in printed
    assert "no step was taken. Lower teacher_batch_size" in printed and "Traceback" not in printed


# ---------------------------------------------------------------------- the data of an evaluation


def test_rows_of_an_evaluation_are_read_as_before(train):
    trainer = train(max_steps=1)
    found = [trainer.evaluate(rows) for rows in (Dataset.from_list(ROWS[:3]), {"some": Dataset.from_list(ROWS[:3])})]
    assert found[0]["eval_loss"] == found[1]["eval_some_loss"]
    loader = trainer.get_eval_dataloader(Dataset.from_list(ROWS[:3]))
    assert len(loader) == len(list(loader)) and loader.dataset[0] == ROWS[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_row_of_an_evaluation_that_cannot_be_read_stops_in_a_sentence(train, tmp_path, workers):
    data = Dataset.from_list(ROWS).with_transform(broken)
    trainer = train(max_steps=1, dataloader_num_workers=workers)
    with pytest.raises(
        DataFailed,
        match=r"^the evaluation data cannot be read further after step 1 \(KeyError: .*prompt of the fifth row.*\), so "
        rf"nothing was evaluated; {KEPT}\. Fix the row",
    ) as caught:
        trainer.evaluate(data)
    assert "\n" not in str(caught.value)


def test_an_evaluation_within_training_says_so_too(train, tmp_path):
    data = Dataset.from_list(ROWS).with_transform(broken)
    with pytest.raises(DataFailed, match=r"^the evaluation data cannot be read further after step 2 .*checkpoint-1"):
        train(options={"eval_dataset": data}, eval_strategy="steps", eval_steps=2)
    assert steps_saved(tmp_path / "run") == [1]
    evaluated = {"options": {"eval_dataset": Dataset.from_list(ROWS)}, "eval_strategy": "steps", "eval_steps": 2}
    assert_it_goes_on_as_if_nothing_had_happened(train, tmp_path, **evaluated)


def test_a_worker_of_an_evaluation_that_is_killed_stops_in_a_sentence(train, monkeypatch):
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.5)  # seconds; 5 otherwise
    trainer = train(max_steps=1, dataloader_num_workers=1)
    with pytest.raises(DataFailed, match=r"^the evaluation data .* \(RuntimeError: DataLoader worker.*num_workers: 0"):
        trainer.evaluate(Dataset.from_list(ROWS).with_transform(deadly))


# ---------------------------------------------------------------------- PyTorch without processes


def test_a_pytorch_without_distributed_has_no_lost_peers(monkeypatch):
    monkeypatch.delattr(torch.distributed, "DistError")
    with pytest.raises(RuntimeError, match="ours"), faults.processes_alive("nowhere", lambda: 1):
        raise RuntimeError("ours")
