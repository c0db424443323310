"""Tokens per second of rollouts: Transformers' `generate` as TRL calls it, beside our decoding loop.

    OMP_NUM_THREADS=1 python benchmarks/rollouts.py --model small

Groups of four rows share a prompt and a prefix; the lengths of the contexts are uniform, those of the responses
lognormal, and both ways are made to end every row at the same one. Times are processor time of one thread, medians of
runs that take turns. Tables go to standard output, everything as JSON to --json.

In an environment that has vLLM, `--ways host ours vllm "vllm without packing" --model FOLDER` puts vLLM beside them,
with its weights packed (as it serves a model that does not change) and as they lie (as in a training).
"""

import argparse
import json
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
)

from tropd.rollout.engine import loop, noise, packed
from tropd.rollout.engine.loop import SamplerNotes
from tropd.rollout.engine.noise import AddressedNoise, Race, decoding_through
from tropd.rollout.engine.slots import SlotLayer, Slots

PAD, EOS = 0, 2
GROUP = 4
MODELS = {
    "tiny": {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 512},
    "small": {"num_hidden_layers": 6, "hidden_size": 256, "num_attention_heads": 8, "vocab_size": 8192},
    "large": {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "vocab_size": 32_768},
    "vocabulary": {"num_hidden_layers": 6, "hidden_size": 512, "num_attention_heads": 8, "vocab_size": 49_152},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="small", help=f"{', '.join(MODELS)}, or a folder with a model")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--by-layer", action="store_true", help="the forward passes by kind of layer")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--contexts", type=int, nargs=2, default=(64, 256), help="shortest and longest")
    parser.add_argument("--responses", type=int, nargs=2, default=(16, 512), help="shortest and longest")
    parser.add_argument("--median", type=float, default=96, help="of the responses' lengths before they are cut")
    parser.add_argument("--spread", type=float, default=0.8, help="standard deviation of their logarithm")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ways", nargs="*", help="only these; default all")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    task = Task(options)
    ways = {name: (WAYS | WAYS_OF_VLLM)[name] for name in options.ways or WAYS}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    parts: dict[str, dict[str, float]] = {}
    for _ in range(options.repeats):
        for name, way in ways.items():
            clocks = Clocks()
            with way(task, clocks) as run:
                clocks.begin()
                run()
                seconds[name].append(clocks.end("bookkeeping"))
            parts[name] = clocks.parts
    report(task, seconds, parts, options)


class Task:
    """A model, contexts in groups, and the length at which each row is to end."""

    def __init__(self, options: argparse.Namespace):
        torch.manual_seed(0)
        self.model = model_of(options.model, getattr(torch, options.dtype))
        self.folder, self.by_layer = options.model, options.by_layer
        shortest, longest = options.contexts
        lengths = torch.randint(shortest, longest + 1, (options.rows // GROUP,)).repeat_interleave(GROUP)
        ids = torch.randint(4, self.model.config.vocab_size, (options.rows // GROUP, longest)).repeat_interleave(
            GROUP, 0
        )
        self.mask = (torch.arange(longest) >= longest - lengths[:, None]).long()
        self.ids = torch.where(self.mask == 1, ids, PAD)[:, longest - int(lengths.max()) :]
        self.mask = self.mask[:, longest - int(lengths.max()) :]
        drawn = (math.log(options.median) + options.spread * torch.randn(options.rows)).exp()
        self.ends = drawn.round().long().clamp(*options.responses)
        self.longest = options.responses[1]
        self.tokens = int(self.ends.sum())

    def generate(self, *processors: LogitsProcessor) -> Tensor:
        """As TRL calls it, with an end that nothing but the benchmark draws."""
        output = self.model.generate(
            input_ids=self.ids,
            attention_mask=self.mask,
            logits_processor=LogitsProcessorList(processors),
            generation_config=GenerationConfig(
                max_new_tokens=self.longest,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                suppress_tokens=[PAD, EOS],
                pad_token_id=PAD,
                eos_token_id=EOS,
                disable_compile=True,
            ),
        )
        written = output[:, self.ids.shape[1] :]
        assert torch.equal((written != PAD).sum(-1), self.ends)
        return written


def model_of(name: str, dtype: torch.dtype) -> PreTrainedModel:
    """A random Llama of `MODELS`, or what is saved in a folder."""
    if name not in MODELS:
        return AutoModelForCausalLM.from_pretrained(name, dtype=dtype).eval()
    sizes = MODELS[name]
    config = LlamaConfig(
        **sizes,
        intermediate_size=3 * sizes["hidden_size"],
        max_position_embeddings=2048,
        pad_token_id=PAD,
        eos_token_id=EOS,
    )
    return LlamaForCausalLM(config).to(dtype).eval()


class Clocks:
    """Processor time of the parts of a run; what a part calls counts for that part alone."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}
        self._open: list[list[float]] = []

    def begin(self) -> None:
        self._open.append([time.process_time(), 0.0])

    def end(self, name: str) -> float:
        """The seconds since the last `begin`, those of parts inside included."""
        started, inside = self._open.pop()
        seconds = time.process_time() - started
        self.parts[name] = self.parts.get(name, 0.0) + seconds - inside
        if self._open:
            self._open[-1][1] += seconds
        return seconds

    def around(self, name: str, call: Callable) -> Callable:
        def timed(*given, **named):
            self.begin()
            try:
                return call(*given, **named)
            finally:
                self.end(name)

        return timed


@contextmanager
def timed_model(task: Task, clocks: Clocks) -> Iterator[None]:
    """Forward passes are counted as those of contexts and those of single tokens."""

    def name(*_, **given) -> str:
        return "contexts" if given["input_ids"].shape[1] > 1 else "tokens"

    before = task.model.register_forward_pre_hook(lambda *_: clocks.begin())
    after = task.model.register_forward_hook(
        lambda _, given, named, output: clocks.end(name(**named)) and None, with_kwargs=True
    )
    with before, after, ExitStack() as stack:
        if task.by_layer:
            time_layers(task.model, clocks, stack)
        yield


def time_layers(model: PreTrainedModel, clocks: Clocks, stack: ExitStack) -> None:
    """What the layers' products, the output layer's and attention take is not counted with the rest of a pass."""
    for layer in model.modules():
        if type(layer) is nn.Linear:
            part = "output layer" if layer is model.get_output_embeddings() else "linear maps"
            stack.enter_context(layer.register_forward_pre_hook(lambda *_: clocks.begin()))
            stack.enter_context(layer.register_forward_hook(lambda *_, part=part: clocks.end(part) and None))
    attention = nn.functional.scaled_dot_product_attention
    stack.enter_context(patch.object(nn.functional, attention.__name__, clocks.around("attention", attention)))
    stack.enter_context(patch.object(packed._Packed, "_copy", clocks.around("packing", packed._Packed._copy)))


# ---------------------------------------------------------------------- the host's way


class EndsAt(LogitsProcessor):
    """Row r ends at its length."""

    def __init__(self, task: Task):
        self.width, self.ends = task.ids.shape[1], task.ends

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        ending = self.ends == input_ids.shape[1] - self.width + 1
        scores[ending] = -torch.inf
        scores[ending, EOS] = 0.0
        return scores


@contextmanager
def host(task: Task, clocks: Clocks) -> Iterator[Callable]:
    with timed_model(task, clocks), patch.object(torch, "multinomial", clocks.around("draw", torch.multinomial)):
        softmax = torch.nn.functional.softmax
        with patch("transformers.generation.utils.nn.functional.softmax", clocks.around("draw", softmax)):
            yield lambda: task.generate(EndsAt(task))


# ---------------------------------------------------------------------- ours


def places(task: Task) -> list[tuple[int, int]]:
    return [(row, 0) for row in range(len(task.ids))]


def ending_race(task: Task) -> type[Race]:
    """A race in which the end wins at each row's last position, known by its key."""
    keys = AddressedNoise(0, 0, 2, places(task)).keys(task.longest)
    last = keys.gather(1, task.ends[:, None] - 1)[:, 0]

    class Ending(Race):
        def run(self, scores_BV: Tensor, keys_B: Tensor) -> Tensor:
            values_BV = super().run(scores_BV, keys_B)
            values_BV[torch.isin(keys_B, last), EOS] = torch.inf
            return values_BV

    return Ending


def ours(rows_at_once: int | None = None, without: Callable[[ExitStack], object] | None = None):
    """Our loop, with at most so many rows at once, or without one of its parts."""

    @contextmanager
    def way(task: Task, clocks: Clocks) -> Iterator[Callable]:
        race = ending_race(task)
        addressed = AddressedNoise(0, 0, 2, places(task), rows_at_once=rows_at_once, notes=SamplerNotes(1.0))
        with ExitStack() as stack:
            stack.enter_context(timed_model(task, clocks))
            stack.enter_context(patch.object(Race, "run", clocks.around("draw", Race.run)))
            stack.enter_context(patch.object(noise, "Race", race))
            stack.enter_context(patch.object(loop._Loop, "_note", clocks.around("notes", loop._Loop._note)))
            for part in ("let_go", "_grow", "hold"):
                timed = clocks.around("moving rows", getattr(Slots, part))
                stack.enter_context(patch.object(Slots, part, timed))
            if without is not None:
                without(stack)
            stack.enter_context(decoding_through(task.model, addressed))
            yield task.generate

    return way


def sharing(stack: ExitStack) -> None:
    """Every row's context is read, as if no other had it."""

    class Unlike(list):
        __eq__ = object.__eq__
        __hash__ = None

    request = noise.Request
    stack.enter_context(
        patch.object(noise, "Request", lambda contexts, **given: request(contexts=[*map(Unlike, contexts)], **given))
    )


def likeness(stack: ExitStack) -> None:
    """All contexts are read together, whatever their lengths."""
    stack.enter_context(patch.object(loop, "ALIKE", 0.0))


def leaving(stack: ExitStack) -> None:
    """Rows stay until all have ended."""
    let_go = Slots.let_go
    stack.enter_context(patch.object(Slots, "let_go", lambda self: let_go(self) if bool(self.ended.all()) else None))


def in_place(stack: ExitStack) -> None:
    """Keys and values are copied for every token, as `DynamicCache` does."""
    update = SlotLayer.update

    def copying(self, *given, **named):
        return tuple(states.clone() for states in update(self, *given, **named))

    stack.enter_context(patch.object(SlotLayer, "update", copying))


def packing(stack: ExitStack) -> None:
    """Weights are read as they lie."""
    stack.enter_context(patch.object(packed, "PAYS_FROM", math.inf))


# ---------------------------------------------------------------------- vLLM


def vllm(packed: bool):
    """vLLM in this process, which writes the same lengths and notes the sampled tokens' log-probabilities."""

    @contextmanager
    def way(task: Task, clocks: Clocks) -> Iterator[Callable]:
        engine = engine_of(task.folder, str(task.model.dtype).removeprefix("torch."), packed)
        from vllm import SamplingParams

        prompts = [{"prompt_token_ids": ids[mask == 1].tolist()} for ids, mask in zip(task.ids, task.mask, strict=True)]
        drawing = [
            SamplingParams(
                temperature=1.0, max_tokens=end, min_tokens=end, ignore_eos=True, logprobs=0, detokenize=False
            )
            for end in task.ends.tolist()
        ]

        def run() -> None:
            outputs = engine.generate(prompts, drawing, use_tqdm=False)
            assert [len(output.outputs[0].token_ids) for output in outputs] == task.ends.tolist()

        yield run

    return way


@cache
def engine_of(folder: str, dtype: str, is_packed: bool):
    """The engine, which has written once: it compiles what it needs at its first request."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    import vllm
    from vllm import _custom_ops
    from vllm.model_executor.layers import utils

    with ExitStack() as stack:
        if not is_packed:  # as tropd.rollout.engine.vllm.keep_weights_loadable, for this engine alone
            stack.enter_context(patch.object(_custom_ops, "_supports_onednn", False))
            stack.enter_context(patch.object(utils, "check_cpu_sgl_kernel", lambda *_: False))
        engine = vllm.LLM(folder, dtype=dtype, max_model_len=2048, enforce_eager=True, enable_prefix_caching=False)
    engine.generate(
        [{"prompt_token_ids": [5, 6, 7]}],
        vllm.SamplingParams(max_tokens=4, logprobs=0, detokenize=False),
        use_tqdm=False,
    )
    assert not multiprocessing.active_children(), "vLLM writes in a process of its own, whose time is not counted here"
    return engine


WAYS = {
    "host": host,
    "ours": ours(),
    "without sharing contexts": ours(without=sharing),
    "without groups of like length": ours(without=likeness),
    "without leaving": ours(without=leaving),
    "without writing in place": ours(without=in_place),
    "without packing": ours(without=packing),
    "32 rows at once": ours(rows_at_once=32),
    "16 rows at once": ours(rows_at_once=16),
    "8 rows at once": ours(rows_at_once=8),
}
WAYS_OF_VLLM = {"vllm": vllm(packed=True), "vllm without packing": vllm(packed=False)}


def report(task: Task, seconds: dict[str, list[float]], parts: dict, options: argparse.Namespace) -> None:
    ends = task.ends.sort().values
    print(
        f"{options.model}: {len(task.ids)} rows, contexts of {int(task.mask.sum(1).min())} to {task.ids.shape[1]}, "
        f"{task.tokens} tokens in responses of {ends[0]} to {ends[-1]}, median {ends[len(ends) // 2]}\n"
    )
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    names = sorted({part for each in parts.values() for part in each})
    print("| way | tokens/s | ÷ host | " + " | ".join(names) + " |\n|" + "---|" * (3 + len(names)))
    base = medians.get("host", math.nan)
    for name, median in medians.items():
        shares = " | ".join(f"{parts[name].get(part, 0.0):.2f} s" for part in names)
        print(f"| {name} | {task.tokens / median:,.0f} | {base / median:.2f} | {shares} |")
    if options.json:
        record = {"options": {k: v for k, v in vars(options).items() if k != "json"}, "tokens": task.tokens}
        options.json.write_text(json.dumps(record | {"seconds": seconds, "parts": parts}, indent=2) + "\n")


if __name__ == "__main__":
    main()
