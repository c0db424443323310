"""What all tests share: no network, no tracker, two threads, the real model and data where they are found."""

import contextlib
import gc
import os
import signal
from pathlib import Path

import pytest

# Before anything imports huggingface_hub, which reads these once. Offline, TRL's telemetry is silent as well.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    TOKENIZERS_PARALLELISM="false",
    WANDB_MODE="disabled",
)

with contextlib.suppress(ModuleNotFoundError):  # the architecture tests need no torch
    import torch

    torch.set_num_threads(2)

with contextlib.suppress(ModuleNotFoundError):  # nor do environments of their own have every tool
    import hypothesis

    # The same examples each time, so that a commit passes or fails for what is in it; TROPD_FUZZ=1 looks for others.
    hypothesis.settings.register_profile(
        "tropd", deadline=None, database=None, derandomize="TROPD_FUZZ" not in os.environ
    )
    hypothesis.settings.load_profile("tropd")

BESIDE_THE_REPOSITORY = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="module", autouse=True)
def _frozen():
    """Each start of a run collects garbage, a third of a training test's time among what was imported long before."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def one_thread():
    """Two threads spend most of their time meeting each other over tensors as small as many tests'."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _found_or_skipped(variable: str, fallback: Path, what: str) -> Path:
    """The folder that `variable` names, else the fallback. A name without a folder fails, not skips."""
    named = os.environ.get(variable)
    path = Path(named).expanduser() if named else fallback
    if path.is_dir():
        return path
    if named:
        pytest.fail(f"{variable} is {named!r}, but there is no such folder. Correct it, or unset it to skip.")
    pytest.skip(f"{what} is not on this machine; set {variable} to its folder to run this test")


@pytest.fixture(scope="session")
def stories260k() -> Path:
    """The folder of a real pretrained language model of 260 thousand parameters, tokenizer included."""
    fallback = BESIDE_THE_REPOSITORY / "models" / "stories260k"
    return _found_or_skipped("TROPD_STORIES260K", fallback, "The pretrained model stories260K")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of the real data sets: `gsm8k/`, `math500/`, `humaneval/` and so on, a folder for each."""
    return _found_or_skipped("TROPD_DATA", BESIDE_THE_REPOSITORY / "data", "The folder of data sets")


@pytest.fixture
def signals_of_a_terminal():
    """SIGINT and SIGHUP as a terminal's processes have them: `nohup` and a background ignore one."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
