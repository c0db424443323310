"""`tropd doctor`: what it says of versions and of this machine, and how soon."""

import subprocess
import sys

import pytest

from tropd.cli import doctor
from tropd.cli.doctor import Requirement, abilities, find_conflicts, fits


def test_it_loads_none_of_the_libraries_that_it_tells_of():
    code = (
        "import sys; from tropd.cli.main import main; code = main(['doctor']); "
        "print(*sorted({'torch', 'transformers', 'trl', 'numpy', 'datasets'} & set(sys.modules)), file=sys.stderr); "
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "", "importing one takes longer than all of this may take"
    for words in ("versions", "this machine", "what can run", "training, check, generate (CPU)        yes"):
        assert words in done.stdout


@pytest.mark.parametrize(
    ("version", "bounds", "is_within"),
    [
        ("2.13.0+cpu", ">=2.11,<2.14", True),
        ("2.14.0", ">=2.11,<2.14", False),
        ("2.14", "<2.14.0", False),
        ("1.16.0", "<1.17,>=1.16", True),
        ("5.1.0", "!=5.1.0", False),
        ("5.1.7", "==5.1.*", True),
        ("1.9", "~=1.4", True),
        ("2.0", "~=1.4", False),
        ("1.0", "", True),
        ("0.0.33.post1", "==0.0.33.post1", True),
        ("2.13.0+cpu", "==2.13.0+cpu", True),
        ("5.17.0.dev0", ">=5.17,<5.25", True),
        ("5.25.0rc1", ">=5.17,<5.25", False),
        ("3.13.0rc1+", ">=3.11", True),
        ("unknown", ">=3.11", False),
    ],
)
def test_a_version_is_compared_by_its_numbers(version, bounds, is_within):
    assert fits(version, bounds) is is_within


@pytest.fixture
def installed(monkeypatch):
    """Installs what a test says, and nothing else."""
    versions, wanted = {"tropd": "1.0"}, {}
    monkeypatch.setattr(doctor, "installed", versions.get)
    monkeypatch.setattr(doctor, "requirements", lambda name: wanted.get(name, []))
    monkeypatch.setattr(doctor, "gpus", list)
    return versions, wanted


ASKED = [Requirement("torch", ">=2.11", None), Requirement("trl", ">=1.16,<1.17", "train")]


def test_what_is_missing_comes_with_its_command(installed):
    installed[0]["torch"] = "2.13.0"
    training = abilities(ASKED)[0]
    assert (training.lacking, training.command) == ("without trl", "pip install 'tropd[train]'")
    installed[0]["trl"] = "1.20.0"
    assert abilities(ASKED)[0].lacking == "wrong version: trl 1.20.0"
    installed[0]["trl"] = "1.16.3"
    assert not abilities(ASKED)[0].lacking


def test_a_gpu_beside_a_pytorch_for_the_cpu_is_told(installed, monkeypatch):
    installed[0].update(torch="2.13.0+cpu", trl="1.16.0")
    monkeypatch.setattr(doctor, "gpus", lambda: ["a GPU, 80 GB"])
    monkeypatch.setattr(doctor, "torch_build", lambda: "cpu")
    assert "CPU build" in abilities(ASKED)[1].lacking
    monkeypatch.setattr(doctor, "torch_build", lambda: "cuda 12.8")
    assert not abilities(ASKED)[1].lacking


def test_packages_that_do_not_go_together_are_named(installed):
    versions, wanted = installed
    versions.update(vllm="0.31.0", transformers="5.23.0")
    wanted["vllm"] = [Requirement("transformers", "<5.18", None), Requirement("torch", "==2.10", "other")]
    assert list(find_conflicts(["vllm", "transformers", "torch"])) == [
        "vllm 0.31.0 needs transformers<5.18, but 5.23.0 is installed."
    ]


def test_where_training_cannot_run_the_exit_code_says_so(installed, monkeypatch, tropd):
    monkeypatch.setattr(doctor, "requirements", lambda name: ASKED if name == "tropd" else [])
    outcome = tropd("doctor")
    assert outcome.code == 1 and "pip install 'tropd[train]'" in outcome.out
