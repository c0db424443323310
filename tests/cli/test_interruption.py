"""SIGTERM and SIGINT: a checkpoint after the step, the conventional exit code, and a run that goes on as if whole."""

import io
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from tropd import TrOPDTrainer
from tropd.training.checkpointing.checkpoints import checkpoints_in
from tropd.training.checkpointing.interruption import Signals


class Send(TrainerCallback):
    """Sends this process a signal in the middle of step 2."""

    def __init__(self, number):
        self.number = number

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == 1:
            os.kill(os.getpid(), self.number)


def send(monkeypatch, number):
    build = TrOPDTrainer.__init__

    def sending(self, *arguments, callbacks=(), **options):
        build(self, *arguments, callbacks=[*callbacks, Send(number)], **options)

    monkeypatch.setattr(TrOPDTrainer, "__init__", sending)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_stops_and_leaves_with_its_code(workspace, tropd, monkeypatch, number, code):
    before = signal.getsignal(number)
    assert tropd("train", *workspace.fields(max_steps=4, output_dir="whole")).code == 0
    with monkeypatch.context() as patched, (workspace.root / "said.txt").open("w") as said:
        patched.setattr("tropd.training.checkpointing.interruption.STDERR", said.fileno())
        send(patched, number)
        outcome = tropd("train", *workspace.fields(max_steps=4))
    assert outcome.code == code and "Traceback" not in outcome.err
    said = (workspace.root / "said.txt").read_text()
    assert said.startswith(f"{signal.Signals(number).name}: a checkpoint is written after this step")
    assert "stopped at step 2; the last checkpoint, out/checkpoint-2, is untouched" in outcome.err
    assert "done:" not in outcome.out and not (workspace.root / "out/model.safetensors").exists()
    assert signal.getsignal(number) == before
    assert tropd("train", *workspace.fields(max_steps=4, resume_from_checkpoint="latest")).code == 0
    ours, theirs = (load_file(workspace.root / name / "model.safetensors") for name in ("out", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_signal_in_the_midst_of_a_printed_line_is_remembered_and_breaks_nothing(monkeypatch):
    signals = Signals()

    class Interrupting(io.RawIOBase):
        def writable(self):
            return True

        def write(self, data):
            signals(signal.SIGTERM, None)
            return len(data)

    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BufferedWriter(Interrupting())))
    print("train: 1/1000", file=sys.stderr, flush=True)
    assert signals.received == signal.SIGTERM


def test_a_signal_is_remembered_where_nobody_listens(monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    monkeypatch.setattr("tropd.training.checkpointing.interruption.STDERR", writing)
    signals = Signals()
    signals(signal.SIGTERM, None)
    os.close(writing)
    assert signals.received == signal.SIGTERM


def test_a_second_sigint_leaves_at_once(workspace):
    fields = workspace.fields(max_steps=1000, per_device_train_batch_size=32, max_completion_length=72)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(
        [sys.executable, "-m", "tropd", "train", *fields, "--max_prompts", "8"],
        stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    assert running.stderr is not None
    try:
        for line in running.stderr:
            if line.startswith("train: 1/1000"):
                break
        running.send_signal(signal.SIGINT)
        time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        assert running.wait(timeout=30) == 130, running.stderr.read()
    finally:
        running.kill()
    whole = checkpoints_in(workspace.root / "out")
    assert all((folder / "checkpoint.json").is_file() for folder in whole)
