"""Eight rows are the same step as 8, 4 + 4 and 2 ranks × 4: data parallel or sharded by FSDP2, over gloo on the CPU;
by DeepSpeed as well where it is installed.

The order of sums differs between the splits, and nothing else: in float32 log-probabilities of some nats agree to
1e-5, and gradients and weights to 1e-5 of the largest gradient. bf16 has eight bits: another split pads rows otherwise
and so rounds otherwise, by 2⁻⁸ of a value.
"""

from pathlib import Path

import pytest
import torch

from torchrun import written_by
from training.rank_worker import SCENARIOS

WORKER = Path(__file__).with_name("rank_worker.py")
SPLITS = {
    "one": ("plain", 1, 1),
    "parts": ("plain", 1, 2),
    "ddp": ("ddp", 2, 1),
    "fsdp2": ("fsdp2", 2, 1),
    "zero2": ("zero2", 2, 1),
    "zero3": ("zero3", 2, 1),
}
"""Name to kind, ranks, and micro-batches of a rank."""

# DeepSpeed takes its own steps, before anyone could see their gradients, and takes bf16 on GPUs alone.
NOT_RUN = {"zero2": {"bf16"}, "zero3": {"bf16", "gkd", "teachers' heads", "replicated"}}

FLOAT32 = [name for name in SCENARIOS if name != "bf16"]
# log π_old is noted while decoding, over keys and values of one token after another, which rounds by up to 2.4e-5.
TOLERANCE = 3e-5
SIGNALS = ("rollout_logp", "teacher_logp", "trust_weight", "outlier_weight", "guidance_mask")
REGIONS = SIGNALS[2:]


def seen_by(out: Path, kind: str, ranks: int, micro_batches: int) -> dict:
    """What the ranks saw of every scenario."""
    scenarios = [name for name in SCENARIOS if name not in NOT_RUN.get(kind, ())]
    out = written_by(ranks, WORKER, out, kind, micro_batches, *scenarios, timeout=280)
    return torch.load(out / "seen.pt", weights_only=True)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """One process and one batch."""
    return seen_by(tmp_path_factory.mktemp("ranks") / "one", *SPLITS["one"])


@pytest.fixture(
    scope="module",
    params=["parts", "ddp", "fsdp2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("zero2", "zero3"))],
)
def split(request):
    if request.param.startswith("zero"):
        pytest.importorskip("deepspeed", reason="DeepSpeed is not installed (pip install deepspeed)")
    return request.param


@pytest.fixture(scope="module")
def other(split, tmp_path_factory):
    """The same scenarios, split."""
    return seen_by(tmp_path_factory.mktemp("ranks") / split, *SPLITS[split])


@pytest.fixture(params=FLOAT32)
def scenario(request, split):
    if request.param in NOT_RUN.get(split, ()):
        pytest.skip(f"{split} does not offer {request.param}")
    return request.param


def test_a_split_writes_and_scores_what_one_batch_does(one, other, scenario):
    ours, theirs = batches(one, other, scenario)
    assert [list(batch) for batch in ours] == [list(batch) for batch in theirs] == [list(range(8))] * len(ours)
    for row, mine, yours in rows_of(ours, theirs):
        assert (mine["response"], mine["prefix"]) == (yours["response"], yours["prefix"]), f"row {row}"
        for name in SIGNALS:
            tolerance = 0 if name in REGIONS and SCENARIOS[scenario].settings.get("gate") == "hard" else TOLERANCE
            close(yours[name], mine[name], tolerance, f"{name} of row {row}")


def test_a_split_takes_the_steps_of_one_batch(one, other, scenario, split):
    if split.startswith("zero"):
        pytest.skip("DeepSpeed takes its step before its gradients can be read; the weights after it are compared")
    ours, theirs = one[scenario]["gradients"], other[scenario]["gradients"]
    largest = max(float(value.abs().max()) for step in ours for value in step.values())
    assert largest > 1e-2, "equal gradients that are zero would prove nothing"
    for mine, yours in zip(ours[-len(theirs) :], theirs, strict=True):
        assert mine.keys() == yours.keys()
        for name, value in mine.items():
            close(yours[name], value, TOLERANCE * max(largest, 1.0), name)


def test_a_split_ends_with_the_weights_of_one_batch_and_saves_them(one, other, scenario, split):
    ours, theirs = one[scenario], other[scenario]
    for name, value in theirs["weights"].items():
        close(value, ours["weights"][name], TOLERANCE, name)
    saved = dict(theirs["saved"])
    if scenario == "tied" and split in ("fsdp2", "zero2"):  # written twice; it loads as one
        assert torch.equal(saved.pop("lm_head.weight"), saved["model.embed_tokens.weight"])
    assert ours["saved"].keys() == saved.keys() != set()
    for name, value in saved.items():
        close(value, ours["saved"][name], TOLERANCE, name)
    assert theirs["teacher moved"] == 0


def test_a_split_logs_the_metrics_of_one_batch(one, other, scenario):
    for ours, theirs in zip(one[scenario]["logs"], other[scenario]["logs"], strict=True):
        names = [name for name in ours if not name.startswith("speed/") and name != "step_time"]
        assert len(names) > 10
        assert {name: theirs[name] for name in names} == pytest.approx(
            {name: ours[name] for name in names}, abs=1e-4, rel=TOLERANCE
        )


def test_a_split_answers_benchmarks_as_one_batch_does(one, other):
    names = ("accuracy", "length", "truncated_share")
    ours, theirs = (
        [{name: entry[f"eval_benchmark/sums/{name}"] for name in names} for entry in facts["benchmarks"]["evaluated"]]
        for facts in (one, other)
    )
    assert ours == theirs and len(ours) == 2 and 0 < ours[0]["length"] < 12


def test_every_rank_has_the_guard_of_one_batch(one, other, scenario):
    (guard,) = one[scenario]["guard"]
    assert set(other[scenario]["guard"]) == {guard}
    assert guard[0] == (scenario == "empty")


def test_a_resumed_split_really_was_interrupted(one, other, split):
    missed = len(one["resumed"]["batches"]) - len(other["resumed"]["batches"])
    assert missed == (SPLITS[split][1] > 1)


def test_a_probe_sees_what_one_process_sees_and_leaves_no_trace(one, other):
    ours, theirs = one["probed"]["probed"], other["probed"]["probed"]
    assert ours.keys() == theirs.keys() and len(ours["teacher_logp"]) > 20
    for name, values in ours.items():
        close(theirs[name], values, TOLERANCE, name)
    for facts in (one, other):
        for name, value in facts["tropd"]["saved"].items():
            assert torch.equal(facts["probed"]["saved"][name], value), name


KINDS = {"parts": "NO", "ddp": "MULTI_CPU", "fsdp2": "FSDP", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}


def test_a_split_is_of_its_kind_and_fsdp2_shards_both_models_or_the_student_alone(other, split):
    for scenario, facts in other.items():
        assert facts["kind"] == f"DistributedType.{KINDS[split]}"
        sharded = split == "fsdp2" and scenario not in ("gkd", "teachers' heads", "replicated", "base")
        assert facts["teacher kind"].startswith("FSDP") == sharded
        # Units that are gathered one at a time: embedding, each layer, the tail, the rest.
        assert (
            facts["teacher units"] > 3
            if sharded or (split, scenario) == ("fsdp2", "base")
            else not facts["teacher units"]
        )


def test_the_scenarios_hold_what_their_names_say(one):
    """A rank without outliers, without trusted tokens, without anything; and a LoRA that is not its base."""
    share = {name: [regions(one[name], rows) for rows in (range(4), range(4, 8))] for name in SCENARIOS}
    assert share["no outliers"][1][1] == 0 < share["no outliers"][0][1]
    assert share["no trusted"][1][0] == 0 < share["no trusted"][0][0]
    assert share["nothing"][1] == (0, 0, 0) and sum(share["nothing"][0]) > 0
    assert sum(share["empty"][1]) == 4
    assert share["tropd"][0][2] > 0
    assert abs(one["lora"]["logs"][0]["kl/k1"]) > 0.05
    trained = set(one["lora"]["gradients"][0])
    assert trained and all("lora" in name for name in trained)


def test_a_base_that_is_the_teacher_teaches_as_a_copy_of_it_does(one):
    shared, copied = one["base"], one["lora"]
    assert shared["teacher kind"] != copied["teacher kind"]
    for name, value in copied["weights"].items():
        if "lora" in name:
            assert torch.equal(shared["weights"][name], value), name


def test_bf16_agrees_to_its_eight_bits(one, other, split):
    if "bf16" in NOT_RUN.get(split, ()):
        pytest.skip("DeepSpeed takes bf16 on GPUs alone")
    # FSDP2 computes in bf16 throughout, where autocast keeps some in float32.
    nats, cosine = (0.3, 0.95) if split == "fsdp2" else (0.05, 0.999)
    ours, theirs = one["bf16"], other["bf16"]
    for row, mine, yours in rows_of(ours["batches"][:1], theirs["batches"][:1]):
        for name in ("rollout_logp", "teacher_logp"):
            close(yours[name], mine[name], nats, f"{name} of row {row}")
            rounded = yours[name].bfloat16().float()
            assert (yours[name] != rounded).float().mean() > 0.5, "log-probabilities were rounded to bf16"
    assert alignment(ours["gradients"][0], theirs["gradients"][0]) > cosine


# ---------------------------------------------------------------------- reading


def batches(one: dict, other: dict, scenario: str) -> tuple[list, list]:
    """The batches that both built: an interrupted run's are those after its interruption."""
    ours, theirs = one[scenario]["batches"], other[scenario]["batches"]
    return ours[len(ours) - len(theirs) :], theirs


def regions(facts: dict, rows: range) -> tuple[float, ...]:
    """Tokens of the rows in trust, outlier and guidance."""
    return tuple(sum(float(facts["batches"][0][row][name].sum()) for row in rows) for name in REGIONS)


def rows_of(ours: list, theirs: list) -> list[tuple[int, dict, dict]]:
    return [(row, mine[row], yours[row]) for mine, yours in zip(ours, theirs, strict=True) for row in sorted(mine)]


def close(actual, expected, tolerance: float, what: str) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance, msg=lambda text: f"{what}: {text}")


def alignment(one: dict, other: dict) -> float:
    """Cosine between two gradients."""
    flat = [torch.cat([gradient[name].flatten() for name in sorted(one)]) for gradient in (one, other)]
    return float(torch.nn.functional.cosine_similarity(*flat, dim=0))
