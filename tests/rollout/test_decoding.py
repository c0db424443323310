"""Our decoding loop writes what Transformers' own writes with the same addresses, and leaves to it what it must."""

import math
from unittest.mock import patch

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    Gemma2Config,
    GenerationConfig,
    GPT2Config,
    LogitsProcessor,
    LogitsProcessorList,
    Mamba2Config,
    MaxTimeCriteria,
    MistralConfig,
    Qwen3_5TextConfig,
    StoppingCriteriaList,
)

from training import tiny
from training.tiny import EOS, PAD, ids
from tropd.rollout.engine import loop as decoding
from tropd.rollout.engine import noise as addressed
from tropd.rollout.engine.loop import SamplerNotes
from tropd.rollout.engine.noise import AddressedNoise, decoding_through
from tropd.rollout.engine.slots import Kept, KeptStates, Row, Slots

TEXTS = ("ab=", "cde+f=", "hi+jk+lm+no=", "m=", "pq+rst+uvw+xyz=1+2=")
CONTEXTS = [ids(text) for text in TEXTS for _ in range(3)]
"""Five groups of three, of several lengths."""

ENDS = [EOS, 7, 11, 20, 33]
"""Enough ends for rows to be of many lengths."""

SIZES = {
    "vocab_size": tiny.VOCABULARY_ROWS,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": EOS,
}


def built(config) -> torch.nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def gpt2():
    return built(
        GPT2Config(
            vocab_size=tiny.VOCABULARY_ROWS,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=256,
            initializer_range=0.3,
            bos_token_id=1,
            eos_token_id=EOS,
            pad_token_id=PAD,
        )
    )


def gemma(**changes):
    """A soft cap, and windows of eight tokens in every other layer."""
    return built(Gemma2Config(**SIZES, sliding_window=8, query_pre_attn_scalar=8, **changes))


def adapted():
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    return get_peft_model(tiny.llama(seed=0), config).eval()


FAMILIES = {
    "llama": lambda: tiny.llama(seed=0),
    "qwen3": lambda: tiny.qwen(seed=0),
    "gemma2": lambda: gemma(attn_implementation="eager"),
    "mistral": lambda: built(MistralConfig(**SIZES, sliding_window=8)),
    "gpt2": gpt2,
    "lora": adapted,
}


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    return FAMILIES[request.param]()


def written(
    model, contexts=CONTEXTS, length=24, *, loop="ours", at_once=None, given=None, synced=False, **settings
) -> Tensor:
    """Responses [R, longest]; asserts that the loop asked for did the work."""
    width = max(map(len, contexts))
    config = GenerationConfig(
        max_new_tokens=length, do_sample=True, top_k=0, pad_token_id=PAD, eos_token_id=ENDS, disable_compile=True
    )
    config.update(**settings)
    places = [(row, row % 3) for row in range(len(contexts))]
    noise = AddressedNoise(0, 3, 2, places, synced_gpus=synced, rows_at_once=at_once)
    reasons = []

    def why(*call):
        reasons.append(decoding.why_plain(*call))
        return "the test" if loop == "theirs" else reasons[-1]

    with decoding_through(model, noise), patch.object(addressed, "why_plain", why):
        output = model.generate(
            input_ids=torch.tensor([[PAD] * (width - len(c)) + list(c) for c in contexts]),
            attention_mask=torch.tensor([[0] * (width - len(c)) + [1] * len(c) for c in contexts]),
            generation_config=config,
            **(given or {}),
        )
    assert (reasons[-1] is None) is (loop != "plain") or loop == "theirs", reasons
    return output[:, width:]


# ---------------------------------------------------------------------- the same tokens


@pytest.mark.parametrize("at_once", [None, 7, 1])
def test_every_family_writes_what_transformers_loop_writes(model, at_once):
    theirs = written(model, loop="theirs")
    assert len((theirs == PAD).sum(-1).unique()) > 3, "rows end at several places"
    assert torch.equal(written(model, at_once=at_once), theirs)


def test_contexts_of_one_length_have_no_mask(model):
    contexts = [ids(text) for text in ("abx=", "cdy=") for _ in range(3)]
    assert torch.equal(written(model, contexts), written(model, contexts, loop="theirs"))


def test_one_token_is_written_where_one_is_asked_for(model):
    assert torch.equal(written(model, length=1), written(model, length=1, loop="theirs"))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_window_is_honoured_across_growing_buffers(attention):
    model = built(MistralConfig(**SIZES, sliding_window=8, attn_implementation=attention))
    theirs = written(model, loop="theirs", length=100, eos_token_id=None)
    assert torch.equal(written(model, length=100, eos_token_id=None), theirs)
    assert torch.equal(written(model, length=100, eos_token_id=None, at_once=6), theirs)


SETTINGS = [
    {"temperature": 0.4},
    {"temperature": 1.7, "top_k": 9, "top_p": 0.8, "suppress_tokens": [4, 5, 6]},
    {"min_p": 0.2},
    {"repetition_penalty": 1.5},
    {"no_repeat_ngram_size": 2},
    {"min_new_tokens": 9, "eos_token_id": [EOS, 7, 11]},
    {"sequence_bias": [[[5, 6], 3.0], [[9], -4.0]]},
    {"exponential_decay_length_penalty": (3, 1.2)},
    {"begin_suppress_tokens": [17, 22, 34, 51]},
    {"eos_token_id": None},
    {"typical_p": 0.7, "renormalize_logits": True},
]


@pytest.mark.parametrize("at_once", [None, 5])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_processors_see_what_they_see_there(settings, at_once):
    model = tiny.llama(seed=0)
    theirs = written(model, loop="theirs", **settings)
    assert torch.equal(written(model, at_once=at_once, **settings), theirs)
    if set(settings) != {"eos_token_id"}:
        assert not torch.equal(theirs, written(model, loop="theirs"))


def test_rows_that_are_looked_at_late_are_padded_as_they_should(monkeypatch):
    """As on a GPU, where looking waits."""
    model = tiny.llama(seed=0)
    theirs = written(model, loop="theirs")
    monkeypatch.setattr(decoding, "LOOK_EVERY", {"cpu": 7, "elsewhere": 7})
    assert torch.equal(written(model), theirs)
    assert torch.equal(written(model, at_once=6), theirs)


def test_draws_follow_the_softmax():
    """First and second tokens of 20,000 rows of one context, by χ² at six standard deviations."""
    model = tiny.llama(seed=0)
    tokens = written(model, [CONTEXTS[3]] * 20_000, length=2, eos_token_id=None)
    context = torch.tensor([CONTEXTS[3]])
    assert_distributed(tokens[:, 0], softmax_behind(model, context))
    likeliest = int(tokens[:, 0].mode().values)
    behind = softmax_behind(model, torch.cat([context, torch.tensor([[likeliest]])], dim=1))
    assert_distributed(tokens[tokens[:, 0] == likeliest, 1], behind)


@torch.no_grad()
def softmax_behind(model, context: Tensor) -> Tensor:
    return model(context).logits[0, -1].double().softmax(-1)


def assert_distributed(tokens: Tensor, probs: Tensor) -> None:
    expected = probs * len(tokens)
    common = expected >= 10
    counts = torch.bincount(tokens, minlength=len(probs)).double()
    expected = torch.cat([expected[common], expected[~common].sum()[None]])
    counts = torch.cat([counts[common], counts[~common].sum()[None]])
    kept = expected > 1
    freedom = int(kept.sum()) - 1
    chi_square = float(((counts - expected)[kept] ** 2 / expected[kept]).sum())
    assert abs(chi_square - freedom) < 6 * math.sqrt(2 * freedom), (chi_square, freedom)


# ---------------------------------------------------------------------- less work


def passes(model, **call) -> list[tuple[int, int]]:
    """(rows, columns) of every forward pass."""
    seen = []
    written(model, **call | {"synced": False})  # what is measured of a model at its first call is no part of this
    hook = model.register_forward_pre_hook(
        lambda _, given, named: seen.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    with hook:
        written(model, **call)
    return seen


def test_a_shared_context_is_read_once():
    read = [shape for shape in passes(tiny.llama(seed=0)) if shape[1] > 1]
    assert sum(rows for rows, _ in read) == len(TEXTS)
    assert [columns for _, columns in read] == [19, 12, 5, 2], "no context is padded to one much longer"


def test_rows_that_have_ended_leave():
    model = tiny.llama(seed=0)
    ends = torch.isin(written(model), torch.tensor(ENDS))
    lengths = torch.where(ends.any(-1), ends.int().argmax(-1) + 1, 24)
    fed = [rows for rows, columns in passes(model) if columns == 1]
    assert fed == [int((lengths > step).sum()) for step in range(1, int(lengths.max()))]


def test_no_more_rows_than_asked_for_are_decoded_at_once():
    fed = passes(tiny.llama(seed=0), at_once=6)
    assert max(rows for rows, _ in fed) == 6
    assert [rows for rows, columns in fed if columns == 1][1] >= 4, "places are taken again"


def test_a_rank_that_has_finished_keeps_running_the_model_until_all_have(monkeypatch):
    """As sharded weights need it; the other rank is played: it is busy for thirty passes more than this one."""
    model = tiny.llama(seed=0)
    alone, count = written(model), len(passes(model))
    asked = []

    def all_reduce(busy):
        asked.append(float(busy))
        busy += 1.0 if len(asked) * decoding.AGREE_EVERY <= count + 30 else 0.0

    monkeypatch.setattr(decoding.dist, "all_reduce", all_reduce)
    with_others = passes(model, synced=True)
    assert with_others[:count] == passes(model)
    assert set(with_others[count:]) == {(1, 1)} and 22 <= len(with_others) - count <= 38
    assert asked[0] == 1.0 and asked[-1] == 0.0
    asked.clear()
    assert torch.equal(written(model, synced=True), alone)


# ---------------------------------------------------------------------- what is left to Transformers


class Mine(LogitsProcessor):
    def __call__(self, input_ids, scores):
        return scores


PLAIN = {
    "a processor of the caller's": {"given": {"logits_processor": LogitsProcessorList([Mine()])}},
    "another stopping criterion": {"given": {"stopping_criteria": StoppingCriteriaList([MaxTimeCriteria(1e9)])}},
    "no cache": {"use_cache": False},
    "a static cache": {"cache_implementation": "static"},
    "a prefill in chunks": {"prefill_chunk_size": 4},
}


@pytest.mark.parametrize("name", PLAIN)
def test_what_the_loop_does_not_know_is_left_to_transformers(name):
    model = tiny.llama(seed=0)
    assert torch.equal(written(model, loop="plain", **PLAIN[name]), written(model))


def test_scores_are_returned_by_transformers_loop():
    model = tiny.llama(seed=0)
    with decoding_through(model, AddressedNoise(0, 0, 2, [(0, 0)])):
        output = model.generate(
            torch.tensor([CONTEXTS[0]]),
            generation_config=GenerationConfig(
                max_new_tokens=3, do_sample=True, pad_token_id=PAD, return_dict_in_generate=True, output_scores=True
            ),
        )
    assert len(output.scores) == output.sequences.shape[1] - len(CONTEXTS[0])


def test_states_that_have_no_columns_are_left_to_transformers():
    recurrent = built(
        Mamba2Config(
            vocab_size=tiny.VOCABULARY_ROWS, hidden_size=16, num_hidden_layers=2, num_heads=4, head_dim=8, state_size=8,
            n_groups=1, chunk_size=4, pad_token_id=PAD, eos_token_id=EOS, bos_token_id=1,
        )
    )  # fmt: skip
    hybrid = built(
        Qwen3_5TextConfig(
            **{**SIZES, "initializer_range": 0.1}, layer_types=["linear_attention", "full_attention"],
            linear_num_value_heads=2, linear_num_key_heads=2, linear_key_head_dim=8, linear_value_head_dim=8,
        )
    )  # fmt: skip
    for model in (recurrent, hybrid):
        assert len(written(model, loop="plain", length=4)) == len(CONTEXTS)


def test_a_mask_with_holes_is_left_to_transformers():
    given = {"attention_mask": torch.tensor([[1, 0, 1, 1]]), "use_cache": True}
    model, input_ids = tiny.llama(seed=0), torch.tensor([[5, 6, 7, 8]])

    def reason(mask, positions):
        given = {
            "attention_mask": mask,
            "position_ids": positions,
            "use_cache": True,
            "past_key_values": DynamicCache(config=model.config),
        }
        return decoding.why_plain(model, input_ids, [], [], GenerationConfig(), given)

    assert "positions" in reason(given["attention_mask"], torch.tensor([[0, 0, 1, 2]]))
    assert "positions" in reason(None, torch.tensor([[4, 5, 6, 7]]))
    assert reason(None, torch.tensor([[0, 1, 2, 3]])) is None


# ---------------------------------------------------------------------- the parts


def test_the_cache_holds_what_a_plain_one_would():
    """Rows that come, move and leave, with buffers that grow: against keys made by hand."""
    slots, expected = Slots(torch.device("cpu")), {}
    generator = torch.Generator().manual_seed(0)

    def states(rows, columns):
        return torch.randn(rows, 2, columns, 3, generator=generator)

    for arrival in range(3):
        width = (5, 9, 4)[arrival]
        prefilled = DynamicCache()
        keys = states(2, width)
        prefilled.update(keys, -keys, 0)
        slots.hold(prefilled, torch.tensor([1, 0, 1]), width, coming=0, room=200)
        rows = [Row(len(expected) + i, width) for i in range(3)]
        numbers = torch.tensor([row.number for row in rows])
        slots.admit(rows, numbers, numbers, numbers < 0, first_column=9)
        expected |= {row.number: keys[source] for row, source in zip(rows, (1, 0, 1), strict=True)}
        for _ in range(70):
            slots.prepare(room=200)
            new = states(len(slots.rows), 1)
            seen, negative = slots.update(new, -new, 0)
            for slot, row in enumerate(slots.rows):
                expected[row] = torch.cat([expected[row], new[slot]], dim=1)
                assert torch.equal(seen[slot, :, -expected[row].shape[1] :], expected[row])
            assert torch.equal(seen, -negative) and seen.isfinite().all()
            slots.advance(slots.tokens, torch.arange(len(slots.rows)) == 0)
        before = slots.rows
        slots.let_go()  # the first, whose place the last one takes
        assert slots.rows == [before[-1], *before[1:-1]]


def test_the_last_rows_fill_the_places_of_those_that_leave():
    slots = Slots(torch.device("cpu"))
    prefilled = DynamicCache()
    prefilled.update(torch.zeros(1, 2, 8, 3), torch.zeros(1, 2, 8, 3), 0)
    slots.hold(prefilled, torch.zeros(6, dtype=torch.long), 8, coming=0, room=9)
    numbers = torch.arange(6)
    ended = torch.tensor([True, False, False, True, False, False])
    slots.admit([Row(n, 3 + n) for n in range(6)], numbers, numbers + 10, ended, first_column=8)
    for _ in range(2):  # the second time none has ended
        slots.let_go()
        assert slots.rows == slots.numbers.tolist() == [5, 1, 2, 4]
        assert slots.positions.tolist() == [3 + row for row in slots.rows]
        assert [layer.rows for layer in slots.layers] == [4]


# ---------------------------------------------------------------------- over turns


def over_turns(model, kept: KeptStates | None, at_once: int | None = None) -> tuple[list[list[int]], Tensor, int]:
    """Three turns of rows that rest now and then and are told something between; texts, log-probs, tokens read."""
    texts, logps, read = [list(context) for context in CONTEXTS], [], 0

    def count(module, args, given):
        nonlocal read
        read += given["input_ids"].numel()

    base = getattr(model, "get_base_model", lambda: model)()
    with base.register_forward_pre_hook(count, with_kwargs=True):
        for turn in range(3):
            asked = [row for row in range(len(texts)) if turn == 0 or (row + turn) % 4]
            contexts, notes = [texts[row] for row in asked], SamplerNotes(temperature=1.0)
            places = [(row, len(texts[row]) - len(CONTEXTS[row])) for row in asked]
            noise = AddressedNoise(0, 3, 2, places, rows_at_once=at_once, notes=notes, kept=kept)
            width = max(map(len, contexts))
            with decoding_through(model, noise):
                output = model.generate(
                    input_ids=torch.tensor([[PAD] * (width - len(c)) + c for c in contexts]),
                    attention_mask=torch.tensor([[0] * (width - len(c)) + [1] * len(c) for c in contexts]),
                    generation_config=GenerationConfig(
                        max_new_tokens=9, do_sample=True, top_k=0, pad_token_id=PAD, eos_token_id=ENDS
                    ),
                )
            for row, context, line in zip(asked, contexts, output[:, width:].tolist(), strict=True):
                ends = [place for place, token in enumerate(line) if token in ENDS]
                tokens = line[: ends[0] + 1] if ends else line
                noted = notes.of(row, CONTEXTS[row], [*context[len(CONTEXTS[row]) :], *tokens]).logps
                logps += noted[-len(tokens) :]
                texts[row] = [*context, *tokens, *ids("x=yz"[: 1 + row % 4])]
    return texts, torch.tensor(logps), read


def test_a_turn_reads_what_is_new_alone_and_writes_the_same(model):
    over_turns(model, None)  # what is measured of a model once is no part of a turn
    texts, logps, read = over_turns(model, None)
    again, noted, fewer = over_turns(model, KeptStates())
    assert again == texts and (noted - logps).abs().max() < 1e-5
    windows = getattr(model.config, "sliding_window", None) is not None
    assert (fewer == read) if windows else (fewer < 0.75 * read), (fewer, read)


def test_rows_that_take_turns_in_the_batch_are_not_kept():
    model = tiny.llama(seed=0)
    over_turns(model, None)
    texts, _, read = over_turns(model, None, at_once=4)
    assert over_turns(model, KeptStates(), at_once=4)[::2] == (texts, read)


def test_what_is_kept_of_another_text_is_not_used():
    """Up to the first token that differs; and never the last of a context, whose logits are wanted."""
    kept = KeptStates()
    kept.keep(3, Kept([5, 6, 7, 8], []))
    asked = ([5, 6, 7, 8, 9], [5, 6, 7], [5, 9, 7, 8, 9], [6])
    assert [kept.known(3, context) for context in asked] == [4, 2, 1, 0] and kept.known(4, [5, 6]) == 0
