"""Addressed sampling: the softmax is sampled, draws are independent, and an address alone decides.

Every test of a distribution is a χ² test at six standard deviations with fixed keys, so it never flickers.
"""

import doctest
import math
import random

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig

from training import tiny
from training.tiny import EOS, PAD, ids
from tropd.rollout import turns as rollout_turns
from tropd.rollout.engine import noise as engine_noise
from tropd.rollout.engine.noise import AddressedNoise, decoding_through, run_race
from tropd.rollout.turns import TextIndex, Turns

LARGE = 151_936


def keys(count: int, seed: int = 0, **address) -> Tensor:
    """One key for each of `count` positions of one row."""
    return noise([(0, 0)], seed=seed, **address).keys(count)[0]


def noise(places, *, seed=0, step=0, stream=2) -> AddressedNoise:
    return AddressedNoise(seed=seed, step=step, stream=stream, places=places)


def draws(logits: Tensor, some_keys: Tensor, at_once: int = 2**21) -> Tensor:
    """One token for each key, all from softmax(logits)."""
    parts = some_keys.split(max(1, at_once // len(logits)))
    return torch.cat([run_race(logits.expand(len(part), -1), part).argmax(-1) for part in parts])


def exponentials(num_positions: int, vocabulary: int) -> Tensor:
    """E of every token at positions of one row: what a race of equal scores is divided by."""
    return 1 / run_race(torch.zeros(num_positions, vocabulary), keys(num_positions))


def assert_distributed(tokens: Tensor, probs: Tensor) -> None:
    """χ² of the counts is within six standard deviations of its mean; ids expected fewer than ten times are pooled."""
    expected = probs.double() * len(tokens)
    counts = torch.bincount(tokens, minlength=len(probs)).double()
    assert counts[probs == 0].sum() == 0
    common = expected >= 10
    expected = torch.cat([expected[common], expected[~common].sum()[None]])
    counts = torch.cat([counts[common], counts[~common].sum()[None]])
    kept = expected > 1
    freedom = int(kept.sum()) - 1
    chi_square = float(((counts - expected)[kept] ** 2 / expected[kept]).sum())
    assert freedom == 0 or abs(chi_square - freedom) < 6 * math.sqrt(2 * freedom), (chi_square, freedom)


def test_the_examples_run():
    assert doctest.testmod(engine_noise).failed == 0 == doctest.testmod(rollout_turns).failed


# ---------------------------------------------------------------------- the noise


def test_the_words_are_those_of_splitmix64():
    """The first outputs of the published generator from state 0."""
    states = torch.arange(1, 4) * engine_noise._GAMMA
    assert [word % 2**64 for word in engine_noise._splitmix(states).tolist()] == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
        0x06C45D188009454F,
    ]


def test_the_exponentials_are_exponential_down_to_where_races_are_won():
    values = exponentials(2000, 2000).double().flatten().sort().values
    n = len(values)
    assert float(values.mean()) == pytest.approx(1, abs=5 / math.sqrt(n))
    steps = torch.arange(1, n + 1) / n
    distance = float((-torch.expm1(-values) - steps).abs().max())
    assert distance < 2 / math.sqrt(n), "Kolmogorov-Smirnov; 1.63/√n is passed by 99 of 100"
    assert values[0] > 0 and values[-1].isfinite()
    # The k-th smallest of n is about k/n: float32's steps near 1, or a 32-bit uniform's, would show here.
    assert [round(float(values[k - 1]) * n / k, 1) for k in (10_000, 100_000)] == [1.0, 1.0]


def test_a_key_depends_on_its_address_alone():
    rows = [(3, 0), (5, 0), (4, 0)]
    whole = noise(rows).keys(9)
    assert torch.equal(noise([(5, 4), (3, 0)]).keys(3), torch.stack([whole[1, 4:7], whole[0, :3]]))
    others = [noise(rows, seed=1), noise(rows, step=1), noise(rows, stream=3), noise([(8, 0), (6, 0), (7, 0)])]
    everything = torch.stack([whole, *(other.keys(9) for other in others)])
    assert len(everything.unique()) == everything.numel()


def test_seeds_steps_rows_and_streams_of_the_gate_are_not_those_of_sampling():
    from tropd.training.step import EVALUATION_GATE_STREAM, GATE_STREAM

    streams = {
        GATE_STREAM,
        EVALUATION_GATE_STREAM,
        engine_noise.SAMPLING_STREAM,
        engine_noise.EVALUATION_SAMPLING_STREAM,
    }
    assert len(streams) == 4


# ---------------------------------------------------------------------- the distribution


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax(temperature):
    logits = torch.randn(40, generator=torch.Generator().manual_seed(1)) * 2 / temperature
    assert_distributed(draws(logits, keys(200_000)), logits.double().softmax(-1))


def test_extreme_logits_are_drawn_as_they_should():
    certain = torch.tensor([-200.0, 80.0, -math.inf, -1e30])
    assert (draws(certain, keys(100_000)) == 1).all()
    alone = torch.full((5,), -math.inf)
    alone[3] = -1e4
    assert (draws(alone, keys(100_000)) == 3).all()
    rare = torch.tensor([0.0, math.log(1e-5), -math.inf])
    assert_distributed(draws(rare, keys(4_000_000)), rare.double().softmax(-1))
    flat = torch.full((50,), 1e4)
    assert_distributed(draws(flat, keys(50_000)), flat.double().softmax(-1))


@pytest.mark.parametrize("name", ["zipf", "flat", "one in two"])
def test_a_vocabulary_of_152_thousand_is_drawn_as_it_should(name):
    """Counted in 32 groups of ids, each with its share of likely and unlikely ones, and in two halves."""
    logits = {
        "zipf": -1.2 * torch.arange(1, LARGE + 1).float().log(),
        "flat": torch.zeros(LARGE),
        "one in two": torch.zeros(LARGE),
    }[name]
    if name == "one in two":
        logits[100_000] = math.log(LARGE - 1)
    tokens = draws(logits, keys(1000))
    if name == "one in two":
        assert int((tokens == 100_000).sum()) == pytest.approx(500, abs=6 * math.sqrt(250))
    groups = torch.arange(LARGE) % 32
    probs = torch.zeros(32, dtype=torch.float64).index_add(0, groups, logits.double().softmax(-1))
    assert_distributed(groups[tokens], probs)
    tail = torch.zeros(2, dtype=torch.float64).index_add(
        0, (torch.arange(LARGE) >= LARGE // 2).long(), logits.double().softmax(-1)
    )
    assert_distributed((tokens >= LARGE // 2).long(), tail)


NEIGHBOURS = {
    "positions": lambda n: (keys(n + 1)[:-1], keys(n + 1)[1:]),
    "rows": lambda n: tuple(noise([(0, 0), (1, 0)]).keys(n)),
    "steps": lambda n: (keys(n, step=4), keys(n, step=5)),
    "seeds": lambda n: (keys(n, seed=4), keys(n, seed=5)),
    "streams": lambda n: (keys(n, stream=2), keys(n, stream=3)),
}


@pytest.mark.parametrize("neighbours", NEIGHBOURS)
def test_neighbouring_addresses_draw_independently(neighbours):
    logits = torch.tensor([0.0, 0.5, -0.5, 1.0, -1.0, 0.2])
    first, second = NEIGHBOURS[neighbours](200_000)
    pairs = draws(logits, first) * 6 + draws(logits, second)
    probs = logits.double().softmax(-1)
    assert_distributed(pairs, (probs[:, None] * probs).flatten())


def test_neighbouring_tokens_have_independent_noise():
    correlation = torch.corrcoef(exponentials(100_000, 8).T)
    assert float((correlation - torch.eye(8)).abs().max()) < 6 / math.sqrt(100_000)


def test_softmaxes_that_nearly_agree_nearly_always_draw_the_same_token():
    """At most 2δ/(1 + δ) of the draws part, δ the total variation: this is what another padding's rounding costs."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2000, generator=generator)
    other = logits + 1e-2 * torch.randn(2000, generator=generator)
    delta = 0.5 * float((logits.softmax(-1) - other.softmax(-1)).abs().sum())
    parted = (draws(logits, keys(20_000)) != draws(other, keys(20_000))).float().mean()
    assert 0 < float(parted) < 2 * delta / (1 + delta) + 6 * math.sqrt(2 * delta / 20_000)


def test_a_batch_cut_into_blocks_draws_what_it_draws_whole(monkeypatch):
    scores = torch.randn(7, 33, generator=torch.Generator().manual_seed(0))
    whole = run_race(scores, keys(7))
    monkeypatch.setitem(engine_noise.BLOCKS, "cpu", 70)
    assert torch.equal(run_race(scores, keys(7)), whole)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_the_same_tokens():
    scores = 3 * torch.randn(64, LARGE, generator=torch.Generator().manual_seed(0))
    here, there = (run_race(scores.to(d), keys(64).to(d)).argmax(-1).cpu() for d in ("cpu", "cuda"))
    assert torch.equal(here, there)


# ---------------------------------------------------------------------- through generate

PROMPTS = [ids(text) for text in ("ab=", "cde+f=", "g=", "hi+jk+l=", "m=", "n+o=", "pq+r=", "s=")]


@pytest.fixture(scope="module")
def model():
    return tiny.llama(seed=0)


def written(model, contexts, places, length=12, seed=0, step=0, eos=EOS, **settings) -> list[list[int]]:
    """Continuations as they leave `generate`, padding and all."""
    width = max(map(len, contexts))
    config = GenerationConfig(
        max_new_tokens=length, do_sample=True, top_k=0, pad_token_id=PAD, eos_token_id=eos, disable_compile=True
    )
    config.update(**settings)
    with decoding_through(model, noise(places, seed=seed, step=step)):
        output = model.generate(
            input_ids=torch.tensor([[PAD] * (width - len(c)) + list(c) for c in contexts]),
            attention_mask=torch.tensor([[0] * (width - len(c)) + [1] * len(c) for c in contexts]),
            generation_config=config,
        )
    return [row + [PAD] * (length - len(row)) for row in output[:, width:].tolist()]


@pytest.fixture(scope="module")
def whole(model):
    return written(model, PROMPTS, [(row, 0) for row in range(8)])


def test_eight_rows_are_four_and_four(model, whole):
    halves = [
        written(model, PROMPTS[:4], [(row, 0) for row in range(4)]),
        written(model, PROMPTS[4:], [(row, 0) for row in range(4, 8)]),
    ]
    assert halves[0] + halves[1] == whole
    assert len({tuple(row) for row in whole}) == 8


def test_another_order_writes_the_same(model, whole):
    order = [5, 2, 7, 0, 1, 6, 3, 4]
    assert written(model, [PROMPTS[row] for row in order], [(row, 0) for row in order]) == [whole[row] for row in order]


def test_other_padding_writes_the_same(model, whole):
    longer = ids("a" * 40)
    assert written(model, [*PROMPTS, longer], [(row, 0) for row in range(9)])[:8] == whole
    alone = [written(model, [prompt], [(row, 0)])[0] for row, prompt in enumerate(PROMPTS)]
    assert alone == whole


def test_rows_that_share_a_prompt_write_different_things(model):
    rows = written(model, [PROMPTS[0]] * 16, [(row, 0) for row in range(16)])
    assert len({tuple(row) for row in rows}) == 16


@pytest.mark.parametrize("address", [{"seed": 1}, {"step": 1}])
def test_another_seed_or_step_writes_something_else(model, whole, address):
    assert written(model, PROMPTS, [(row, 0) for row in range(8)], **address) != whole


def test_a_response_goes_on_as_it_would_have_from_any_position(model):
    """With prefixes of several lengths, as teacher prefixes and tool loops have them; no ending, so that all go on."""
    places = [(row, 0) for row in range(8)]
    full = written(model, PROMPTS, places, eos=None)
    starts = [row % 5 for row in range(8)]
    contexts = [[*prompt, *row[:start]] for prompt, row, start in zip(PROMPTS, full, starts, strict=True)]
    rest = written(model, contexts, [(row, start) for row, start in enumerate(starts)], eos=None)
    for row, start in enumerate(starts):
        assert [*full[row][:start], *rest[row]][:12] == full[row]


def test_an_ended_row_is_padded_and_moves_no_other(model):
    places = [(row, 0) for row in range(8)]
    endless = written(model, PROMPTS, places, length=40, eos=None)
    ending = endless[2][3]
    for row, free in zip(written(model, PROMPTS, places, length=40, eos=ending), endless, strict=True):
        length = free.index(ending) + 1 if ending in free else 40
        assert row == free[:length] + [PAD] * (40 - length)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.4},
        {"temperature": 2.5},
        {"top_k": 3},
        {"top_p": 0.6},
        {"min_p": 0.2},
        {"temperature": 1.7, "top_k": 9, "top_p": 0.8, "suppress_tokens": [4, 5, 6]},
    ],
    ids=str,
)
def test_settings_of_the_sampler_are_honoured(model, settings):
    """First tokens of 20,000 rows against what Transformers' own processors leave of the softmax, in their order."""
    tokens = torch.tensor(written(model, [PROMPTS[1]] * 20_000, [(r, 0) for r in range(20_000)], length=1, **settings))
    scores = model(torch.tensor([PROMPTS[1]])).logits[:, -1].detach()
    config = GenerationConfig(do_sample=True, **({"top_k": 0} | settings))
    for processor in model._get_logits_processor(config, device="cpu"):
        scores = processor(torch.tensor([PROMPTS[1]]), scores)
    assert_distributed(tokens[:, 0], scores[0].double().softmax(-1))


def test_the_global_generator_is_neither_read_nor_moved(model, whole):
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert written(model, PROMPTS, [(row, 0) for row in range(8)]) == whole
    assert torch.equal(torch.get_rng_state(), before)


def test_the_model_is_left_as_it_was(model):
    assert "generate" not in vars(model)
    model.generate = mine = model.generate
    try:
        with pytest.raises(ZeroDivisionError), decoding_through(model, noise([(0, 0)])):
            _ = 1 / (model.generate is mine)
        assert model.generate is mine
    finally:
        del model.generate


def test_a_softmax_that_is_not_finite_is_refused_as_pytorch_does(model):
    broken = tiny.clone(model)
    broken.lm_head.weight.data[5, 3] = math.nan
    with pytest.raises(RuntimeError, match="probability tensor contains"):
        written(broken, PROMPTS, [(row, 0) for row in range(8)])


def test_sharded_weights_keep_the_ranks_in_step(monkeypatch):
    """`generate` hands `synced_gpus` to its own loops only, so it has to come from the noise."""
    seen = {}

    class Model:
        def _sample(self, input_ids, **given):
            seen.update(given)
            return input_ids

    config = GenerationConfig(max_length=9, do_sample=True)
    for synced in (False, True):
        AddressedNoise(0, 0, 2, [(0, 0)], synced_gpus=synced).decode(
            Model(), torch.zeros(1, 4, dtype=torch.long), [], [], config
        )
        assert seen["synced_gpus"] is synced


# ---------------------------------------------------------------------- rows over the turns of a tool loop


def test_the_first_turn_has_every_row_in_order():
    turns = Turns(first_row=8)
    assert turns.places([[1], [1, 2], [1]]) == [(8, 0), (9, 0), (10, 0)]


def test_a_later_turn_is_known_by_what_its_rows_have_written():
    turns = Turns(first_row=8)
    contexts = [[1, 1], [1, 1], [2], [2]]
    turns.places(contexts)
    turns.record(contexts, [[5, 6], [7], [5, 6], [7]])
    second = [[1, 1, 7, 30, 31], [2, 5, 6, 30]]
    assert turns.places(second) == [(9, 3), (10, 3)]
    turns.record(second, [[9], [8, 8]])
    assert turns.places([[2, 5, 6, 30, 8, 8, 40]]) == [(10, 6)]


def test_rows_with_the_same_text_are_told_apart_by_their_order():
    turns = Turns(first_row=0)
    turns.places([[1]] * 4)
    turns.record([[1]] * 4, [[5], [6], [5], [5]])
    assert turns.places([[1, 5, 9], [1, 5, 8], [1, 5, 9]]) == [(0, 2), (2, 2), (3, 2)]


def test_a_text_that_begins_another_does_not_stand_for_it():
    turns = Turns(first_row=0)
    turns.places([[1], [1]])
    turns.record([[1], [1]], [[5], [5, 6]])
    assert turns.places([[1, 5, 6, 9]]) == [(1, 3)]


def test_a_context_of_no_row_is_not_given_one():
    turns = Turns(first_row=0)
    turns.places([[1], [2]])
    turns.record([[1], [2]], [[5], [6]])
    assert turns.places([[1, 6, 9]]) is None
    turns.record([[1, 6, 9]], [[7]])
    assert turns.places([[1, 5, 9]]) == [(0, 2)], "what was not known changes nothing"


def rows_by_definition(texts: dict[int, list[int]], contexts: list[list[int]]) -> list[int] | None:
    free, found = dict(texts), []
    for context in contexts:
        fitting = [row for row in sorted(free) if context[: len(free[row])] == free[row]]
        if not fitting:
            return None
        found.append(max(fitting, key=lambda row: len(free[row])))
        del free[found[-1]]
    return found


def test_rows_are_found_as_defined_whatever_they_have_written():
    """Few letters, so that many texts are equal or begin another; some contexts are of no row."""
    draw = random.Random(3)
    unknown = 0
    for _ in range(300):
        index, texts = TextIndex(), {}
        for _ in range(6):
            for row in draw.sample(range(8), draw.randint(1, 8)):
                texts[row] = texts.get(row, []) + draw.choices([1, 2], k=draw.randint(0, 2))
                index.put(row, texts[row])
            asked = draw.sample(sorted(texts), draw.randint(1, len(texts)))
            contexts = [texts[row] + draw.choices([1, 2], k=draw.randint(0, 2)) for row in asked]
            if draw.random() < 0.2:
                contexts.append([3])
            expected = rows_by_definition(texts, contexts)
            assert index.find(contexts) == expected
            unknown += expected is None
    assert unknown > 100


class Counted(int):
    """A token that counts how often it is looked at."""

    looks = 0

    def __eq__(self, other):
        Counted.looks += 1
        return int(self) == int(other)

    def __hash__(self):
        Counted.looks += 1
        return int.__hash__(self)


def looks_at_tokens(rows: int, route: str) -> int:
    """How often a token is looked at while rows play four turns; half of them are a copy of another row."""
    turns, read = Turns(first_row=0), [[7, row // 2] for row in range(rows)]
    messages: list[list[dict]] = [[] for _ in range(rows)]
    Counted.looks = 0
    for turn in range(4):
        contexts = [[Counted(token) for token in context] for context in read]
        calls = [range(rows)] if route != "row by row" or turn == 0 else [[row] for row in range(rows)]
        for asked in calls:
            mine, written = [contexts[row] for row in asked], [[row // 4, 5] for row in asked]
            assert turns.places(mine) == [(row, len(contexts[row]) - 2) for row in asked]
            turns.record(mine, written)
            for row, tokens in zip(asked, written, strict=True):
                read[row] = [*read[row], *tokens, 9, turn]
        if route == "tools":
            if turn == 0:
                turns.follow(messages)
            for row in messages:
                row.append({"role": "tool"})
    return Counted.looks


@pytest.mark.parametrize("route", ["tools", "all at once", "row by row"])
def test_rows_are_found_with_work_in_proportion_to_their_number(route):
    few, more, most = (looks_at_tokens(rows, route) for rows in (16, 80, 144))
    assert 0 < few < most - more == more - few, "64 more rows cost the same, however many there are"
