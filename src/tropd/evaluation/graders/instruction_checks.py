"""Inside of the sandbox: does a response follow its instructions? The checkers of if-verifiable decide."""

import importlib
import json
import random
import sys
import types


def load_ifeval() -> None:
    """Import the checkers of IFEval and all they read."""
    load_ifbench()
    importlib.import_module("if_verifiable.ifeval.instructions_registry")


def load_ifbench() -> None:
    """Import what the checkers of IFBench use; they reach for the network when they are imported, and so wait until
    there is none."""
    # The package's door loads data sets from the Hub, for which it wants `datasets`; only its checkers are used here.
    hub = types.ModuleType("datasets")
    hub.load_dataset = None  # type: ignore[attr-defined]
    sys.modules["datasets"] = hub
    importlib.import_module("nltk").sent_tokenize("One. Two.")
    importlib.import_module("if_verifiable.common")
    langdetect = importlib.import_module("langdetect")
    langdetect.DetectorFactory.seed = 0
    langdetect.detect("Which language is this?")  # reads its profiles


def answer_instructions() -> None:
    """Read {"benchmark", "response", "prompt", "instructions", "kwargs", "seed"} and write {"strict", "loose"}, a truth
    for each instruction."""
    from if_verifiable.common import evaluate_instructions

    order = json.load(sys.stdin)
    if order["benchmark"] == "ifeval":
        from if_verifiable.ifeval.instructions_registry import INSTRUCTION_DICT
    else:
        from if_verifiable.ifbench.instructions_registry import INSTRUCTION_DICT
    random.seed(order["seed"])  # a checker draws what an instruction leaves open
    results, _ = evaluate_instructions(
        order["response"], order["instructions"], order["kwargs"], order["prompt"], INSTRUCTION_DICT
    )
    strict, loose = ([bool(getattr(one, f"{kind}_pass")) for one in results] for kind in ("strict", "loose"))
    json.dump({"strict": strict, "loose": loose}, sys.stdout)
