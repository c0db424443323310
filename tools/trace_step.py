"""How far one reads to follow one step: the files and functions of tropd that a step enters, in their order.

    python tools/trace_step.py [--route tropd]

A tiny student is trained for two steps; what is traced lies between the end of the first and the end of the second, so
that checks made once at the start are not part of it. Counted are named functions (no lambda, no comprehension) of the
package, by their first call; not what Python's import system asks when a library looks for one that is not installed.
A *switch* is a first call in another file than the first call before it, and a *return* is a switch to a file that was
left before.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback

import tropd

PACKAGE = Path(tropd.__file__).parent
CASES = {"opd": ("opd", 1), "tropd": ("tropd", 1), "tropd, two teachers": ("tropd", 2)}
WORDS = ["<pad>", "<eos>", *(f"w{i}" for i in range(30))]


@dataclass(frozen=True)
class Route:
    """The functions of a step, each at its first call.

    Attributes:
        calls: (file below the package, qualified name of the function).
    """

    calls: list[tuple[str, str]]

    @property
    def files(self) -> list[str]:
        """Files in the order in which they are first entered."""
        return list(dict.fromkeys(file for file, _ in self.calls))

    @property
    def switches(self) -> int:
        """How often the next function stands in another file."""
        return sum(before != after for (before, _), (after, _) in pairwise(self.calls))

    @property
    def returns(self) -> int:
        """How often the next function stands in another file that was left before."""
        seen, count = set(), 0
        for (before, _), (after, _) in pairwise(self.calls):
            seen.add(before)
            count += before != after and after in seen
        return count

    def counts(self) -> dict[str, int]:
        """The four numbers."""
        return {
            "files": len(self.files),
            "functions": len(self.calls),
            "switches": self.switches,
            "returns": self.returns,
        }


class Tracer:
    """Notes each named function of the package at its first call, while it is armed."""

    def __init__(self) -> None:
        self.seen: dict[tuple[str, str, int], None] = {}

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        is_ours = event == "call" and code.co_filename.startswith(str(PACKAGE)) and not code.co_name.startswith("<")
        if is_ours and not (frame.f_back and frame.f_back.f_code.co_filename.startswith("<frozen importlib")):
            file = Path(code.co_filename).relative_to(PACKAGE).as_posix()
            self.seen[file, code.co_qualname, code.co_firstlineno] = None

    def route(self) -> Route:
        """What was seen."""
        return Route([(file, name) for file, name, _ in self.seen])


class TraceSecondStep(TrainerCallback):
    """Arms a tracer from the end of step 1 to the end of step 2."""

    def __init__(self, tracer: Tracer) -> None:
        self.tracer = tracer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        sys.setprofile(self.tracer if state.global_step == 1 else None)


def tiny_model(seed: int) -> LlamaForCausalLM:
    """Two layers of random weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One id for each word."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")


def trace_step(method: str, teachers: int) -> Route:
    """The route of one step of `method`, with default settings and one or several teachers."""
    rows = [
        {"prompt": f"w{i} w{i + 1}", "teacher_response": f"w{i + 2} w{i + 3} w{i + 4}", "teacher": "ab"[i % teachers]}
        for i in range(8)
    ]
    tracer = Tracer()
    with tempfile.TemporaryDirectory() as folder:
        args = tropd.TrOPDConfig(
            folder,
            method=method,
            max_steps=2,
            per_device_train_batch_size=4,
            max_completion_length=12,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        given = {name: tiny_model(7 + i) for i, name in enumerate("ab"[:teachers])}
        data = Dataset.from_list(rows)
        tropd.TrOPDTrainer(
            tiny_model(3),
            given if teachers > 1 else given["a"],
            args,
            data if teachers > 1 else data.remove_columns("teacher"),
            processing_class=tiny_tokenizer(),
            teacher_processing_class=tiny_tokenizer(),
            callbacks=[TraceSecondStep(tracer)],
        ).train()
    return tracer.route()


def main() -> None:
    """Print the numbers of each case, and the route of one."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--route", choices=CASES, help="print every function of this case, file by file")
    chosen = parser.parse_args().route
    routes = {name: trace_step(*case) for name, case in CASES.items()}
    for name, route in routes.items():
        print(f"{name}: {json.dumps(route.counts())}")
    before = None
    for file, name in routes[chosen].calls if chosen else []:
        print(f"{'' if file == before else file}\n    {name}" if file != before else f"    {name}")
        before = file


if __name__ == "__main__":
    main()
