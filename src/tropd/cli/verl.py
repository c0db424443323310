"""`tropd verl`: is tropd armed in verl here, for which methods, and what nobody has tried."""

import argparse
import importlib.metadata
import importlib.util
import os

from ..extras import installed
from ..objective.methods import METHODS
from ..verl import arming
from ..verl.methods import why_not
from . import console

HELP = "is tropd armed in verl here?"

DESCRIPTION = """\
Say whether verl would run with tropd's methods on this machine, which methods these are, and what was not tried.

It imports verl, which takes a while, and changes nothing. Run it on every node: each has its own installation.
Exit code 0: armed; 2: not armed, with the reason."""

EPILOG = """\
examples:
  tropd verl
  tropd export --to verl --help     the data of a run
  tropd recipes verl/tropd.sh       the script of a run, whose overrides docs/verl.md explains"""

NOT_TRIED = (
    "Ray with GPUs, FSDP on CUDA, vLLM as a real server: no run of verl from end to end",
    "sequences split over ranks (Ulysses), LoRA, FP8, padding to a fixed length",
    "asynchronous trainers: π_old is then versions behind, and a prefix may be used in a different step than planned",
)
REFUSED = (
    "Megatron and VeOmni actors, fused kernels: the loss needs whole rows of logits",
    "SGLang as the teacher's server: it omits the score of the sampled token",
)


def run(options: argparse.Namespace) -> int:
    version = installed("verl")
    if version is None:
        raise ValueError(
            f"verl is not installed here. Install it along with tropd: pip install 'verl[vllm]=={arming.KNOWN}.*' "
            "(docs/verl.md)."
        )
    reason = arming.refusal(version)
    if reason is not None:
        raise ValueError(reason)
    _check_entry_point()
    armed = _arm()
    lines = [
        f"{name:<13}{installed(name) or 'not installed'}"
        for name in ("tropd", "verl", "torch", "transformers", "ray", "vllm")
    ]
    lines += ["", "active in this process"]
    lines += [f"  {words}" for words in armed.values()]
    absent = [words for name, (words, _) in arming.CHANGES.items() if name not in armed]
    lines += [f"  not here: {words} (vllm is not installed)" for words in absent]
    lines += ["", "methods (distillation.distillation_loss.loss_mode)"]
    lines += [f"  {name:<16}{_words(name)}" for name in METHODS]
    lines += ["", "refused", *(f"  {words}" for words in REFUSED)]
    lines += ["", "not tried", *(f"  {words}" for words in NOT_TRIED)]
    console.show(*lines)
    return 0


def _check_entry_point() -> None:
    """Would verl load the plugin by itself?"""
    found = [point.name for point in importlib.metadata.entry_points(group="verl.plugins")]
    if "tropd" not in found:
        raise ValueError(
            "tropd is not installed as a package, so verl does not find its entry point. Install it: pip install tropd"
        )
    policy = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto").strip()
    if policy.lower() != "auto" and "tropd" not in [name.strip() for name in policy.split(",")]:
        raise ValueError(
            f"VERL_USE_EXTERNAL_PLUGINS is {policy!r}, so verl does not load tropd. Unset it, or add tropd to it."
        )


def _arm() -> dict[str, str]:
    """Import verl, and of what tropd changes in it whatever can be imported here."""
    importlib.import_module("verl")
    for name in arming.CHANGES:
        if "vllm" in name and importlib.util.find_spec("vllm") is None:
            continue
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise ValueError(
                f"verl is installed, but its module {name} needs the package {error.name!r}, which is not. Install "
                f"verl with what its workers import: pip install 'verl[vllm]=={arming.KNOWN}.*' (docs/verl.md)."
            ) from error
    if not arming.ARMED:
        raise ValueError("verl was imported, but it did not load tropd; its output above says why.")
    return dict(arming.ARMED)


def _words(name: str) -> str:
    reason = why_not(METHODS[name])
    if reason is not None:
        return f"no: {reason}"
    notes = []
    if METHODS[name].guided:
        notes.append("prefixes by `tropd export` and the agent loop tropd_prefix, their NLL not trained on (β = 0)")
    if METHODS[name].teacher_entropy_tau is not None:
        notes.append("the teacher's entropy is a lower bound from its top-k")
    return "yes" if not notes else f"yes; {'; '.join(notes)}"
