"""A student and a teacher that disagree, shared by the trainer's tests; tests train copies of them."""

import pytest
import torch
from datasets import Dataset
from transformers import PrinterCallback

from training import tiny
from training.tiny import ROWS, Recorder, ScriptedTrainer, clone


@pytest.fixture(scope="package", autouse=True)
def _one_thread():
    """Two threads spend most of their time meeting each other over tensors as small as these."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def student():
    return tiny.llama(seed=0)


@pytest.fixture(scope="session")
def teacher():
    return tiny.qwen(seed=1, width=24)


@pytest.fixture
def pair():
    """Two models of one family."""
    return tiny.llama(1), tiny.llama(2)


@pytest.fixture
def train(tmp_path, pair):
    """Train fresh copies of the pair for four steps, a checkpoint after each; `prepare` sees the trainer first."""

    def run(name="run", method="opd", *, prepare=None, resume=None, data=None, callbacks=(), options=None, **settings):
        recorder = Recorder()
        settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1} | settings
        trainer = ScriptedTrainer(
            clone(pair[0]),
            clone(pair[1]),
            args=tiny.config(tmp_path / name, method, **settings),
            train_dataset=Dataset.from_list(ROWS) if data is None else data,
            processing_class=tiny.tokenizer(),
            callbacks=[*callbacks, recorder],
            **(options or {}),
        )
        trainer.recorder = recorder
        trainer.remove_callback(PrinterCallback)  # its output is a file too, where the size of files is limited
        if prepare is not None:
            prepare(trainer)
        trainer.train(resume_from_checkpoint=None if resume is None else str(tmp_path / name / f"checkpoint-{resume}"))
        return trainer

    return run
