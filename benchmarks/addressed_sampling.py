"""What addressed sampling costs beside PyTorch's own, and how often rounding changes a draw.

    OMP_NUM_THREADS=1 python benchmarks/addressed_sampling.py

About two minutes on one CPU core, nothing to download. Times are processor time of one thread, medians of runs that
take turns, so that another load on the machine touches all of them alike. The tables go to standard output, and to
docs/reliability.md.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from tropd.rollout.engine.noise import AddressedNoise, decoding_through, run_race

ROWS, TOKENS = 8, 64
VOCABULARIES = (512, 151_936)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7, help="runs of each kind, default 7")
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    print(f"One token for each of {ROWS} rows, milliseconds (÷ multinomial)\n")
    print("| V | multinomial | race | inverse cumulated softmax |\n|" + "---|" * 4)
    for vocabulary in VOCABULARIES:
        print(_draws_row(vocabulary, repeats), flush=True)
    print(f"\n`generate`, {ROWS} rows of {TOKENS} tokens, a Llama of 4 layers of width 64, tokens per second\n")
    print("| V | PyTorch's generator | addressed | addressed ÷ PyTorch's |\n|" + "---|" * 4)
    for vocabulary in VOCABULARIES:
        print(_generate_row(vocabulary, repeats), flush=True)
    print("\nOf 2,048 draws those that part when every logit moves by a normal of the given size, V = 32,000\n")
    print("| noise | entropy, nats | total variation | race | inverse cumulated softmax |\n|" + "---|" * 5)
    for size in (1e-2, 1e-4):
        for scale in (8.0, 6.0, 4.0):
            print(_parting_row(size, scale), flush=True)


# ---------------------------------------------------------------------- draws from a softmax


def multinomial(scores: Tensor, keys: Tensor) -> Tensor:
    """What `generate` does after its processors."""
    return torch.multinomial(scores.softmax(-1), 1)[:, 0]


def race(scores: Tensor, keys: Tensor) -> Tensor:
    return run_race(scores, keys).argmax(-1)


def inverse(scores: Tensor, keys: Tensor) -> Tensor:
    """The alternative with one uniform a token; cumulated in float64, where V of them still add up."""
    cumulated = scores.double().softmax(-1).cumsum(-1)
    uniforms = keys.double() * 2.0**-53 * cumulated[:, -1]
    return torch.searchsorted(cumulated, uniforms[:, None], right=True)[:, 0]


def addressed_keys(count: int, length: int) -> Tensor:
    return AddressedNoise(seed=0, step=0, stream=2, places=[(row, 0) for row in range(count)]).keys(length)


def _draws_row(vocabulary: int, repeats: int) -> str:
    scores, keys = 3 * torch.randn(ROWS, vocabulary), addressed_keys(ROWS, 1)[:, 0]
    calls = 5 if vocabulary > 10_000 else 500
    kinds = [lambda kind=kind: kind(scores, keys) for kind in (multinomial, race, inverse)]
    stock, *others = [1000 * seconds / calls for seconds in _medians(kinds, calls, repeats)]
    cells = [f"{stock:.3g}", *(f"{other:.3g} ({other / stock:.2f})" for other in others)]
    return f"| {vocabulary:,} | " + " | ".join(cells) + " |"


def _medians(kinds: list[Callable[[], object]], calls: int, repeats: int) -> list[float]:
    """Seconds of `calls` calls of each kind, median over rounds in which the kinds take turns."""
    for kind in kinds:
        kind()
    rounds = [[_seconds(kind, calls) for kind in kinds] for _ in range(repeats)]
    return [statistics.median(column) for column in zip(*rounds, strict=True)]


def _seconds(call: Callable[[], object], calls: int) -> float:
    started = time.process_time()
    for _ in range(calls):
        call()
    return time.process_time() - started


# ---------------------------------------------------------------------- whole rollouts


def _generate_row(vocabulary: int, repeats: int) -> str:
    model = _model(vocabulary)
    prompts = torch.randint(4, vocabulary, (ROWS, 16))
    config = GenerationConfig(
        max_new_tokens=TOKENS, do_sample=True, top_k=0, pad_token_id=0, eos_token_id=None, disable_compile=True
    )
    noise = AddressedNoise(seed=0, step=0, stream=2, places=[(row, 0) for row in range(ROWS)])

    def stock() -> Tensor:
        return model.generate(input_ids=prompts, generation_config=config)

    def addressed() -> Tensor:
        with decoding_through(model, noise):
            return stock()

    tokens = ROWS * TOKENS
    theirs, ours = (tokens / seconds for seconds in _medians([stock, addressed], 1, repeats))
    return f"| {vocabulary:,} | {theirs:,.0f} | {ours:,.0f} | {ours / theirs:.2f} |"


def _model(vocabulary: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=256,
        pad_token_id=0,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


# ---------------------------------------------------------------------- draws that part


def _parting_row(size: float, scale: float, contexts: int = 16, draws: int = 128) -> str:
    """Normal logits with standard deviation `scale`, and the same with noise; the same keys for both."""
    generator = torch.Generator().manual_seed(0)
    sums = torch.zeros(4, dtype=torch.float64)
    for context in range(contexts):
        logits = scale * torch.randn(32_000, generator=generator, dtype=torch.float64)
        moved = logits + size * torch.randn(32_000, generator=generator, dtype=torch.float64)
        logp, other = logits.log_softmax(-1), moved.log_softmax(-1)
        keys = addressed_keys(context + 1, draws)[-1]
        parted = [
            int((kind(logp.expand(draws, -1), keys) != kind(other.expand(draws, -1), keys)).sum())
            for kind in (race, inverse)
        ]
        entropy = -float((logp.exp() * logp).sum())
        variation = 0.5 * float((logp.exp() - other.exp()).abs().sum())
        sums += torch.tensor([entropy, variation, *parted])
    entropy, variation = (sums[:2] / contexts).tolist()
    raced, inverted = (int(count) for count in sums[2:])
    return f"| {size:.0e} | {entropy:.1f} | {variation:.1e} | {raced} | {inverted} |"


if __name__ == "__main__":
    main()
