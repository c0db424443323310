"""Faults while training: nothing hangs, nothing wrong is learned, one sentence, and the last checkpoint is kept."""

import errno
import json
import math
import multiprocessing
import os
import re
import resource
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset, IterableDataset
from torch.utils.data import get_worker_info

import shipped
from torchrun import run_ranks
from training import fault_worker
from training.tiny import ROWS, TrainerCallback, largest, largest_difference, weights_of
from tropd import atomic_files
from tropd.atomic_files import append_jsonl, write_whole
from tropd.cli.main import main
from tropd.training.checkpointing.checkpoints import checkpoints_in, fault_of
from tropd.training.distributed.ranks import Ranks
from tropd.training.guards.errors import DataFailed, LogNotWritten, TeacherFailed, TrainingStopped
from tropd.training.guards.faults import in_a_line
from tropd.training.logging.collect import Totals

KEPT = "the last checkpoint, .*checkpoint-1, is untouched"


def steps_saved(directory):
    whole = checkpoints_in(directory)
    assert all(fault_of(folder) is None for folder in whole)
    return [int(folder.name.rpartition("-")[2]) for folder in whole]


def metrics(directory):
    """The logged steps without what a clock says."""
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in record.items() if not key.startswith(("speed/", "step_time"))}
        for record in records
        if "loss" in record
    ]


def assert_it_goes_on_as_if_nothing_had_happened(train, tmp_path, resume=1, **settings):
    """Resumed, the run ends with the weights and the records of one that met no fault."""
    weights, records = uninterrupted(train, tmp_path, **settings)
    resumed = train(resume=resume, **settings)
    assert largest_difference(weights_of(resumed.model), weights) == 0
    assert metrics(tmp_path / "run") == records
    assert [record["step"] for record in records] == [1, 2, 3, 4]


PLAIN = []
"""Weights and records of the plain run, which most tests ask for."""


def uninterrupted(train, tmp_path, **settings):
    if not settings and PLAIN:
        return PLAIN
    whole = train("whole", **settings)
    found = [weights_of(whole.model), metrics(tmp_path / "whole")]
    PLAIN.extend([] if settings else found)
    return found


# ---------------------------------------------------------------------- the teacher


def on_call(number, change):
    """A teacher whose `number`-th answer is `change(scores)`."""

    def prepare(trainer):
        score, calls = trainer.teacher.score, []

        def answer(*args, **options):
            calls.append(1)
            scores = score(*args, **options)
            return change(scores) if len(calls) == number else scores

        trainer.teacher.score = answer

    return prepare


def raising(error):
    def change(scores):
        raise error

    return change


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (RuntimeError("the server is\non fire"), r"\(RuntimeError: the server is\).*`tropd check` scores a few"),
        (
            ConnectionError("refused"),
            r"\(ConnectionError: refused\).*Check that the teacher can be reached and continue",
        ),
        (torch.OutOfMemoryError("CUDA out of memory"), r"\(OutOfMemoryError: CUDA.*Lower teacher_batch_size"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_teacher_that_raises_stops_the_run_before_the_step(train, tmp_path, error, advice):
    with pytest.raises(TeacherFailed, match=rf"^the teacher failed in step 2 {advice}") as caught:
        train(prepare=on_call(2, raising(error)))
    assert caught.value.__cause__ is error and isinstance(caught.value, TrainingStopped)
    assert "checkpoint-1, is untouched" in str(caught.value) and "\n" not in str(caught.value)
    assert steps_saved(tmp_path / "run") == [1] and len(metrics(tmp_path / "run")) == 1
    assert_it_goes_on_as_if_nothing_had_happened(train, tmp_path)


def test_a_teacher_that_raises_while_it_writes_a_prefix_stops_the_run(train):
    def prepare(trainer):
        def write(*args, **options):
            raise RuntimeError("no pen")

        trainer.teacher.write = write

    with pytest.raises(
        TeacherFailed, match=r"the teacher failed in step 1 \(RuntimeError: no pen\).*no checkpoint yet"
    ):
        train(method="tropd", prepare=prepare)


def test_an_evaluation_whose_teacher_raises_says_so(train):
    trainer = train(max_steps=1)
    on_call(1, raising(RuntimeError("gone")))(trainer)
    with pytest.raises(TeacherFailed, match=r"failed in the evaluation after step 1 \(RuntimeError: gone\).*" + KEPT):
        trainer.evaluate(Dataset.from_list(ROWS[:2]))


def test_an_interruption_in_the_teacher_is_no_fault_of_it(train):
    with pytest.raises(KeyboardInterrupt):
        train(prepare=on_call(2, raising(KeyboardInterrupt())))


def changed(scores, **values):
    return type(scores)(**(vars(scores) | values))


@pytest.mark.parametrize("longer", [False, True], ids=["shorter", "longer"])
@pytest.mark.parametrize("name", ["logp", "entropy", "topk_ids", "topk_logp", "hidden"])
def test_a_teacher_that_gives_another_number_of_scores_is_refused_with_both_counts(train, tmp_path, name, longer):
    counts = []

    def change(scores):
        of = scores.states[0] if name == "hidden" else scores
        values = getattr(of, name)
        counts.extend([len(values) + 1 if longer else len(values) - 1, len(values)])
        spoiled = changed(of, **{name: torch.cat([values, values[:1]]) if longer else values[:-1]})
        return changed(scores, states=(spoiled,)) if name == "hidden" else spoiled

    with pytest.raises(TeacherFailed) as caught:
        train(method="gkd" if name == "hidden" else "fkl", prepare=on_call(2, change))
    sentence = str(caught.value)
    assert sentence.startswith(f"the teacher gave {counts[0]} values of {name} for the {counts[1]} tokens")
    assert "of step 2, so nothing was learned" in sentence and "checkpoint-1, is untouched" in sentence
    assert steps_saved(tmp_path / "run") == [1]


def set_at(tensor, places, value):
    tensor = tensor.clone()
    tensor[places] = value
    return tensor


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_entropy_that_is_not_a_number_does_not_reach_the_metrics_or_a_method_that_reads_none(train, bad):
    with_bad = train(
        max_steps=1, prepare=on_call(1, lambda scores: changed(scores, entropy=set_at(scores.entropy, [3, 9], bad)))
    )
    entropies = []
    plain = train("plain", max_steps=1, prepare=on_call(1, lambda scores: entropies.append(scores.entropy) or scores))
    assert largest_difference(weights_of(with_bad.model), weights_of(plain.model)) == 0
    rest = [value for place, value in enumerate(entropies[0].tolist()) if place not in (3, 9)]
    logged = with_bad.state.log_history[0]
    assert logged["entropy/teacher"] == pytest.approx(sum(rest) / len(rest))
    assert logged["teacher/nonfinite_tokens"] == 0


@pytest.mark.parametrize("method", ["eopd"])
def test_an_entropy_that_is_not_a_number_leaves_its_token_out_where_the_gate_reads_it(train, method):
    assert_left_out_like_a_token_without_a_score(
        train, method, lambda scores: changed(scores, entropy=set_at(scores.entropy, [3, 9], math.nan)), 2
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("method", ["fkl", "jsd", "tropd"])
def test_a_topk_that_is_not_a_number_leaves_its_token_out(train, method, bad):
    settings = {"guidance_schedule": "none"} if method == "tropd" else {}
    assert_left_out_like_a_token_without_a_score(
        train,
        method,
        lambda scores: changed(scores, topk_logp=set_at(scores.topk_logp, ([0, 2], 1), bad)),
        2,
        **settings,
    )


def assert_left_out_like_a_token_without_a_score(train, method, spoil, count, **settings):
    """The step equals, gradient by gradient, the one in which those tokens have no log-probability."""
    places = []

    def unscored(scores):
        spoiled = spoil(scores)
        differs = ~(spoiled.entropy == scores.entropy)
        differs[scores.topk_index[~(spoiled.topk_logp == scores.topk_logp).all(-1)]] = True
        places.extend(differs.nonzero()[:, 0].tolist())
        left = ~differs[scores.topk_index]
        return changed(
            scores,
            logp=set_at(scores.logp, differs, math.nan),
            topk_index=scores.topk_index[left],
            topk_ids=scores.topk_ids[left],
            topk_logp=scores.topk_logp[left],
        )

    settings |= {"max_steps": 1, "fkl_top_k": 4}
    ours = train(method=method, prepare=on_call(1, spoil), **settings)
    theirs = train("unscored", method, prepare=on_call(1, unscored), **settings)
    assert len(places) == count == ours.state.log_history[0]["teacher/nonfinite_tokens"]
    gradients = ours.recorder.steps[0].gradients
    assert math.isfinite(largest(gradients)) and largest(gradients) > 0
    assert largest_difference(gradients, theirs.recorder.steps[0].gradients) == 0
    assert counted(ours) == counted(theirs)
    plain = train("plain", method, **settings)
    assert largest_difference(gradients, plain.recorder.steps[0].gradients) > 0


def counted(trainer):
    """The first step's metrics without what a clock says."""
    logged = trainer.state.log_history[0]
    return {name: value for name, value in logged.items() if not name.startswith(("speed/", "step_time"))}


def test_an_impossible_token_in_a_topk_is_a_probability_of_zero(train):
    done = train(
        method="fkl",
        max_steps=1,
        fkl_top_k=4,
        prepare=on_call(1, lambda scores: changed(scores, topk_logp=set_at(scores.topk_logp, (0, 3), -math.inf))),
    )
    logged = done.state.log_history[0]
    assert logged["teacher/nonfinite_tokens"] == 0 and math.isfinite(logged["loss"])


# ---------------------------------------------------------------------- the data


def stream(count, fails_at=None, once=False):
    left = [True]

    def rows():
        if once and not left:
            return
        left.clear()
        for number in range(count):
            if number == fails_at:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            yield ROWS[number % len(ROWS)]

    return IterableDataset.from_generator(rows)


@pytest.mark.parametrize(("resume", "shuffled"), [(1, False), (2, True), (3, False), (3, True)])
def test_a_stream_that_ends_is_read_again_and_a_resumed_run_too(train, tmp_path, resume, shuffled):
    """Five prompts are two steps of two; the fifth is left over."""
    settings = {"data": stream(5), "shuffle_dataset": shuffled, "save_final_model": True}
    train(**settings)
    assert_it_goes_on_as_if_nothing_had_happened(train, tmp_path, resume, **settings)
    assert (tmp_path / "run" / "model.safetensors").is_file() and steps_saved(tmp_path / "run")[-1] == 4


def test_a_stream_of_micro_batches_goes_on_where_it_was(train, tmp_path):
    settings = {"data": stream(5), "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    train(**settings)
    assert_it_goes_on_as_if_nothing_had_happened(train, tmp_path, 3, **settings)


def test_a_run_over_a_stream_can_be_made_longer(train, tmp_path):
    train(max_steps=3, data=stream(5))
    weights, _ = uninterrupted(train, tmp_path, data=stream(5))
    assert largest_difference(weights_of(train(resume=3, data=stream(5)).model), weights) == 0


def test_a_stream_that_cannot_be_read_again_ends_the_run_with_its_checkpoint_and_model(train, tmp_path, caplog):
    done = train(data=stream(5, once=True), save_steps=50, save_final_model=True)
    assert done.state.global_step == 2 and steps_saved(tmp_path / "run") == [2]
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert "The training data ended after step 2 of 4 (max_steps)" in caplog.text


def test_a_stream_without_a_whole_batch_is_refused_instead_of_training_nothing(train, tmp_path):
    with pytest.raises(DataFailed, match=r"less than one rollout batch of 8 rollouts .*so nothing was trained\. Lower"):
        train(data=stream(1), save_final_model=True)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_stream_that_fails_in_the_middle_stops_in_a_sentence(train, tmp_path):
    """The host reads a step ahead: the third step's prompts fail while the second is to be taken."""
    with pytest.raises(
        DataFailed,
        match=rf"training data cannot be read further at step 2 \(OSError: .*Input/output.*{KEPT}.*Fix the row",
    ) as caught:
        train(data=stream(8, fails_at=4))
    assert isinstance(caught.value.__cause__, OSError) and steps_saved(tmp_path / "run") == [1]
    assert_it_goes_on_as_if_nothing_had_happened(train, tmp_path, data=stream(8))


def test_prompts_that_fill_no_batch_wait_for_another_epoch(train):
    done = train(data=Dataset.from_list(ROWS[:5]), max_steps=-1, num_train_epochs=2)
    assert done.state.global_step == 4
    assert all(len(part) == 8 for part in done.contexts_seen)


def broken(rows):
    """Rows of which one cannot be read, in the process or in a worker."""
    if ROWS[4]["prompt"] in rows["prompt"]:
        raise KeyError("prompt of the fifth row")
    return rows


def deadly(rows):
    """Rows of which the reading of one kills the worker."""
    if ROWS[4]["prompt"] in rows["prompt"] and get_worker_info() is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    return rows


ROWS_THAT_KILL = Dataset.from_list(ROWS).with_transform(deadly)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_row_that_cannot_be_read_stops_in_a_sentence(train, tmp_path, workers):
    data = Dataset.from_list(ROWS).with_transform(broken)
    with pytest.raises(
        DataFailed, match=r"cannot be read further at step \d \(KeyError: .*prompt of the fifth row.*Fix the row"
    ) as caught:
        train(data=data, dataloader_num_workers=workers)
    assert "\n" not in str(caught.value) and steps_saved(tmp_path / "run") == [1]


class KillTheWorker(TrainerCallback):
    """Kills the process that loads the data, within the second step."""

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == 1:
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGKILL)
            time.sleep(1)  # PyTorch's handler raises here, as soon as the signal arrives


@pytest.mark.parametrize("when", ["while it reads", "while a step is taken"])
def test_a_data_loaders_worker_that_is_killed_stops_in_a_sentence(train, tmp_path, monkeypatch, when):
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.5)  # seconds; 5 otherwise
    options = {"callbacks": [KillTheWorker()]} if when == "while a step is taken" else {"data": ROWS_THAT_KILL}
    began = time.monotonic()
    with pytest.raises(
        DataFailed, match=r"cannot be read further at step \d \(RuntimeError: DataLoader worker.*num_workers: 0"
    ) as caught:
        train(dataloader_num_workers=1, **options)
    assert time.monotonic() - began < 20 and not multiprocessing.active_children()
    saved = steps_saved(tmp_path / "run")
    assert ("is untouched" in str(caught.value)) == bool(saved)
    if when == "while a step is taken":
        assert saved == [1]
        assert_it_goes_on_as_if_nothing_had_happened(train, tmp_path)


def test_an_error_that_a_worker_hands_over_is_one_line():
    assert (
        in_a_line(RuntimeError("Caught ValueError in worker.\n  File x\nValueError: bad row\n"))
        == "ValueError: bad row"
    )
    gloo = "[/a/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [::1]:2. This is typically caused by"
    assert in_a_line(RuntimeError(gloo)) == "RuntimeError: Connection closed by peer [::1]:2"
    assert in_a_line(RuntimeError()) == "RuntimeError"
    assert len(in_a_line(RuntimeError("x" * 9999))) < 310


# ---------------------------------------------------------------------- the clock


class Jumping:
    """A clock that leaps by hours, forth and back, each time it is read."""

    def __init__(self, clock, leaps):
        self.clock, self.leaps, self.calls = clock, leaps, 0

    def __call__(self):
        self.calls += 1
        return self.clock() + self.leaps[self.calls % len(self.leaps)]


@pytest.mark.parametrize("leaps", [(0, 7200, -7200), (0, 0, 36000)])
def test_a_clock_that_jumps_changes_no_weight_and_no_speed_is_negative(train, tmp_path, monkeypatch, leaps):
    weights, records = uninterrupted(train, tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(time, "time", Jumping(time.time, leaps))
        patched.setattr(time, "perf_counter", Jumping(time.perf_counter, leaps))
        done = train()
    assert largest_difference(weights_of(done.model), weights) == 0 and metrics(tmp_path / "run") == records
    for entry in done.state.log_history:
        speeds = {key: value for key, value in entry.items() if key.startswith("speed/")}
        assert all(math.isfinite(value) and value >= 0 for value in speeds.values()), speeds


def test_a_duration_that_is_not_positive_is_left_out_of_a_speed():
    totals = Totals()
    for seconds in (2.0, 0.0, -3600.0):
        totals.add("speed/update", 100, seconds)
    assert totals.collect(SimpleNamespace(sum=lambda table: table)) == {"speed/update": 50.0}


def test_progress_and_estimates_survive_a_clock_that_jumps(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(time, "time", Jumping(time.time, (0, -7200, 7200)))
        assert main(["train", *fields(tmp_path), "--preflight_prompts", "2"]) == 0
    printed = capfd.readouterr()
    assert "train: 4/4 steps" in printed.err and not re.search(r"-\d+ (s|min|h)|nan|inf\b", printed.out + printed.err)


# ---------------------------------------------------------------------- the log's disk


@pytest.fixture
def largest_file():
    """Set the largest size of a file that this process may write; put back afterwards."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


class NoRoomAt(TrainerCallback):
    """Leaves room for a hundred bytes more in `metrics.jsonl` when `step` is logged."""

    def __init__(self, step, limit):
        self.step, self.limit = step, limit

    def on_log(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.limit(os.path.getsize(os.path.join(args.output_dir, "metrics.jsonl")) + 100)


def test_a_log_without_room_stops_the_run_with_its_last_line_whole(train, tmp_path, largest_file):
    with pytest.raises(
        LogNotWritten, match=rf"^metrics.jsonl in .* cannot be written at step 2 \(File too large\).*{KEPT}\. Free some"
    ):
        train(callbacks=[NoRoomAt(2, largest_file)])
    largest_file(resource.RLIM_INFINITY)
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert text.endswith("}\n") and [json.loads(line)["step"] for line in text.splitlines()] == [1]
    assert steps_saved(tmp_path / "run") == [1]
    assert_it_goes_on_as_if_nothing_had_happened(train, tmp_path)


@pytest.mark.parametrize(
    ("file", "number"), [("metrics.jsonl", errno.ENOSPC), ("rollouts/step-000002.jsonl", errno.EIO)]
)
def test_a_record_that_does_not_reach_the_disk_is_taken_back(train, tmp_path, monkeypatch, file, number):
    fsync = os.fsync

    def full(descriptor):
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(file) and second():
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    def second():
        return file.startswith("rollouts") or (tmp_path / "run" / file).read_text().count("\n") == 2

    with monkeypatch.context() as patched:
        patched.setattr(atomic_files.os, "fsync", full)
        with pytest.raises(LogNotWritten, match=rf"at step 2 \({os.strerror(number)}\)") as caught:
            train(rollout_log_steps=1)
    assert ("Free some space" in str(caught.value)) == (number != errno.EIO)
    assert len(metrics(tmp_path / "run")) == 1
    logged = sorted(path.name for path in (tmp_path / "run" / "rollouts").iterdir())
    assert logged == ["step-000001.jsonl", "step-000002.jsonl"][: 1 if file.startswith("rollouts") else 2]
    assert_it_goes_on_as_if_nothing_had_happened(train, tmp_path, rollout_log_steps=1)
    ours, theirs = ({p.name: p.read_text() for p in (tmp_path / n / "rollouts").iterdir()} for n in ("run", "whole"))
    assert ours == theirs and len(ours) == 4


def test_a_disk_that_is_full_when_a_run_begins_is_a_sentence(train, tmp_path, largest_file):
    train(max_steps=2)
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    largest_file(100)
    try:
        with pytest.raises(LogNotWritten, match=r"run.json or metrics.jsonl in .* cannot be written at step 1 "):
            train(resume=1)
    finally:
        largest_file(resource.RLIM_INFINITY)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before
    assert not list((tmp_path / "run").glob("*.partial"))


def test_what_has_no_room_is_not_there(tmp_path, largest_file):
    append_jsonl(tmp_path / "a.jsonl", [{"n": 1}])
    largest_file(50)
    try:
        for name in ("a.jsonl", "b.jsonl"):
            with pytest.raises(OSError):
                append_jsonl(tmp_path / name, [{"n": 2}, {"long": "x" * 100}])
        with pytest.raises(OSError):
            write_whole(tmp_path / "c.json", "x" * 100)
    finally:
        largest_file(resource.RLIM_INFINITY)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.jsonl": '{"n": 1}\n'}


# ---------------------------------------------------------------------- several processes, and the command line

WORKER = Path(__file__).with_name("fault_worker.py")
LOST = r"error: (\(process 1\) )?another process of the run ended or stopped answering in step \d"
SECONDS = 30
"""What the launcher gives the others when one process has ended; then it kills them."""


def fields(folder):
    """A training of four steps on the shipped pair, a checkpoint after each."""
    rows = shipped.rows(8)
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "student": shipped.student_path(),
        "teacher": shipped.teacher_path(),
        "data": "prompts.jsonl",
        "output_dir": "out",
        "method": "opd",
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "max_completion_length": 8,
        "gradient_checkpointing": False,
        "save_strategy": "steps",
        "save_steps": 1,
        "logging_steps": 1,
        "preflight_prompts": 0,
    }
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def two_ranks(told):
    """Ranks of which the other one says `told`, or cannot be reached."""
    ranks = Ranks(Accelerator(cpu=True))

    def other(local):
        if told is None:
            raise RuntimeError("nobody there")
        return torch.maximum(local, torch.tensor([told], dtype=local.dtype))

    ranks.max = other
    return ranks


@pytest.mark.parametrize(
    ("here", "told", "raised"),
    [(False, 0, None), (False, 1, "elsewhere"), (True, 0, "here"), (True, 1, "here"), (True, None, "here")],
)
def test_ranks_leave_a_block_together(here, told, raised):
    def block():
        with two_ranks(told).failing_together(lambda: ValueError("elsewhere")):
            if here:
                raise ValueError("here")

    if raised is None:
        block()
    else:
        with pytest.raises(ValueError, match=raised):
            block()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "rank", "failed", "others"),
    [
        (
            "teacher",
            1,
            r"error: \(process 1\) the teacher failed in step 2 \(OutOfMemoryError: ",
            "failed in step 2 on another",
        ),
        ("student", 1, r"error: \(process 1\) memory ran out in step 2 while the student was scored", LOST),
        ("reward", 1, r"error: \(process 1\) the reward function exactness failed in step 2 \(KeyError: 'an", LOST),
        ("alone", 1, "RuntimeError: this rank has had enough", LOST),
        ("log", 0, r"error: metrics.jsonl in out cannot be written at step 2 \(No space left", LOST),
        ("killed", 1, r"exitcode +: -9", LOST),
        ("killed", 0, r"exitcode +: -9", LOST),
    ],
)
def test_a_rank_that_fails_alone_does_not_leave_the_other_waiting(tmp_path, fault, rank, failed, others):
    said = said_by_two(tmp_path, fault, rank, *(["--rescore_rollouts", "true"] if fault == "student" else []))
    assert re.search(failed, said) and re.search(others, said), said
    assert "checkpoint-1, is untouched" in said
    assert steps_saved(tmp_path / "out") == [1]


@pytest.mark.slow
def test_a_teacher_that_fails_in_the_preflight_of_one_rank_stops_both(tmp_path):
    said = said_by_two(tmp_path, "preflight", 1, "--preflight_prompts", "2")
    assert re.search(r"error: \(process 1\) the teacher failed in the preflight \(OutOfMemoryError: ", said), said
    assert "failed in the preflight on another process, which says why; nothing was learned from it" in said
    assert steps_saved(tmp_path / "out") == []


def said_by_two(tmp_path, fault, rank, *more):
    """What two processes say that train until `fault` happens on one of them, which is soon for both."""
    done = run_ranks(2, WORKER, fault, rank, *fields(tmp_path), *more, cwd=tmp_path)
    took = time.time() - float((tmp_path / "fault.txt").read_text())
    assert done.returncode != 0 and took < SECONDS, took
    return done.stderr


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("teacher", "error: the teacher failed in step 2 (OutOfMemoryError: CUDA out of memory"),
        ("log", "error: metrics.jsonl in out cannot be written at step 2 (No space left on device)"),
    ],
)
def test_the_command_line_says_one_sentence_and_leaves_with_code_2(tmp_path, monkeypatch, capfd, fault, sentence):
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patched:
        fault_worker.FAULTS[fault](patched.setattr)
        assert main(["train", *fields(tmp_path)]) == 2
    printed = " ".join(capfd.readouterr().err.split())
    assert sentence in printed and "out/checkpoint-1, is untouched" in printed and "Traceback" not in printed
    assert steps_saved(tmp_path / "out") == [1]
    assert main(["train", *fields(tmp_path), "--resume_from_checkpoint", "latest"]) == 0
