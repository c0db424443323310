"""`examples/minimal.py` is the library's `tropd` written out: one loss and one gradient on the same rollouts."""

import ast
import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

from training import tiny
from training.tiny import clone, gradients_of, groups, ids, largest, largest_difference, recorded, replay, run
from tropd.evaluation.exact import state_logps
from tropd.models.hidden_states import expose_hidden_states
from tropd.models.packing import pack_responses
from tropd.objective import (
    RegionCounts,
    TokenSignals,
    TopKTerm,
    addressed_uniforms,
    get_method,
    guidance_fraction,
    prefix_length,
    reduce_losses,
    region_counts,
    student_terms,
    token_losses,
    topk_function,
    topk_of,
    trust_probability,
    trust_weight,
)

FILE = Path(__file__).parents[1] / "examples" / "minimal.py"
TOP_K, BETA = 5, 0.3
"""A k below the vocabulary, and a β that lets an error of the guidance term show."""
ROUNDING_64, ROUNDING_32 = 1e-12, 1e-5
"""Of the largest gradient: the two sum some hundred terms in another order, each rounded to 2e-16 or 1e-7."""

ALL_PREFIX, NO_PREFIX, MIXED = (2, 5, 0), (4, 0, 7), (3, 4, 3)
"""Lengths of prompt, prefix and continuation."""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def minimal(monkeypatch):
    spec = importlib.util.spec_from_file_location("minimal", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "TOP_K", TOP_K)
    monkeypatch.setattr(module, "BETA", BETA)
    return module


@pytest.fixture(scope="module")
def student():
    return tiny.llama(seed=0).double()


@pytest.fixture(scope="module")
def teacher():
    return tiny.qwen(seed=1, width=24).double()


def random_rows(shapes, seed):
    """Prompts, prefixes and continuations of random tokens; and a draw for every place of the padded rows."""
    generator = torch.Generator().manual_seed(seed)
    columns = [
        [torch.randint(4, tiny.VOCABULARY_ROWS, (length,), generator=generator).tolist() for length in lengths]
        for lengths in zip(*shapes, strict=True)
    ]
    longest = max(map(sum, shapes))
    return columns, torch.rand(len(shapes), longest - 1, generator=generator, dtype=torch.float64)


def log_ratios(minimal, student, teacher, tokens_BL):
    """log π_S and log π_T of each token as the file reads them, [B, T]: a gate at its border needs the same bits."""
    with torch.no_grad():
        return [
            minimal.read(model, tokens_BL).gather(-1, tokens_BL[:, 1:, None]).squeeze(-1)
            for model in (student, teacher)
        ]


def library_loss(minimal, student, teacher, columns, uniforms_BT):
    """The same loss by `tropd.objective`, from packed rows; of the file it takes what the gate reads, and no more."""
    prompts, prefixes, continuations = columns
    responses = [prefix + continuation for prefix, continuation in zip(prefixes, continuations, strict=True)]
    scored = [[True] * len(response) for response in responses]
    packed = pack_responses(prompts, responses, scored, tiny.PAD)
    guided = torch.tensor([p < len(x) for x, y in zip(prefixes, responses, strict=True) for p in range(len(y))])

    rollouts = minimal.pack(*columns)
    places = [(row, len(p) - 1 + i) for row, p in enumerate(prompts) for i in range(len(responses[row]))]
    rows, positions = torch.tensor(places).T
    student_BT, teacher_BT = log_ratios(minimal, student, teacher, rollouts.tokens)
    student_logp, teacher_logp = student_BT[rows, positions], teacher_BT[rows, positions]
    trust = trust_weight("bernoulli", teacher_logp - student_logp, uniforms=uniforms_BT[rows, positions])
    on = (~guided).double()
    signals = TokenSignals(student_logp, teacher_logp, trust * on, (1 - trust) * on, 1 - on)

    method = get_method("tropd", fkl_top_k=TOP_K, guidance_beta=BETA)
    outliers = (signals.outlier_weight > 0).nonzero().squeeze(-1)
    with torch.no_grad():
        top_ids, top_logp = topk_of(state_logps(teacher, packed)[outliers], TOP_K, tiny.VOCABULARY_ROWS)
    direct = TopKTerm(outliers, top_ids, top_logp, topk_function(method))
    expose_hidden_states(student)
    logp, values, _ = student(
        input_ids=packed.input_ids,
        attention_mask=packed.attention_mask,
        on_hidden=lambda hidden, head: student_terms(packed.states(hidden), head, packed.token_ids, direct),
    )
    losses = token_losses(method, signals, logp, values)
    return reduce_losses(losses, RegionCounts(*region_counts(signals).tolist()), method.reduction)


def assert_equal(minimal, student, teacher, columns, uniforms_BT):
    """Loss and gradient of every parameter, float64."""
    ours = library_loss(minimal, student, teacher, columns, uniforms_BT)
    expected = {name: g.clone() for name, g in gradients_of(student, ours).items()}
    loss, _ = minimal.tropd_loss(student, teacher, minimal.pack(*columns), uniforms_BT)
    assert loss.item() == pytest.approx(ours.item(), rel=ROUNDING_64)
    assert largest(expected) > 0.01, "equal gradients of zero would prove nothing"
    assert largest_difference(gradients_of(student, loss), expected) < ROUNDING_64 * largest(expected)


@pytest.mark.parametrize(
    "shapes",
    [
        [MIXED, ALL_PREFIX, NO_PREFIX, (1, 1, 9)],
        [NO_PREFIX, (2, 0, 1), (5, 0, 4)],
        [ALL_PREFIX, (1, 3, 0)],
        [MIXED],
    ],
    ids=["mixed rows", "no prefixes", "nothing but prefixes", "one row"],
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_loss_and_gradient_are_those_of_the_library(minimal, student, teacher, shapes, seed):
    columns, uniforms_BT = random_rows(shapes, seed)
    assert_equal(minimal, student, teacher, columns, uniforms_BT)


def test_a_draw_at_the_border_makes_an_outlier_and_one_below_it_is_trusted(minimal, student, teacher):
    columns, uniforms_BT = random_rows([MIXED, ALL_PREFIX, NO_PREFIX, (1, 1, 9)], seed=3)
    rollouts = minimal.pack(*columns)
    student_BT, teacher_BT = log_ratios(minimal, student, teacher, rollouts.tokens)
    border_BT = trust_probability(teacher_BT - student_BT)
    doubted_BT = (border_BT < 1) & (rollouts.author[:, 1:] == minimal.BY_STUDENT)
    at, below = doubted_BT.nonzero()[:2]
    uniforms_BT[*at] = border_BT[*at]
    uniforms_BT[*below] = border_BT[*below].nextafter(torch.zeros((), dtype=torch.float64))
    _, trusted_BT = minimal.tropd_loss(student, teacher, rollouts, uniforms_BT)
    assert not trusted_BT[*at] and trusted_BT[*below]
    assert_equal(minimal, student, teacher, columns, uniforms_BT)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_trainer_takes_the_same_step(minimal, tmp_path, monkeypatch, seed):
    """The whole of the library: its prefixes, its scoring, its addressed draws, its fused loss, in float32."""
    monkeypatch.setattr(minimal, "MAX_LENGTH", 10)
    student, teacher = tiny.llama(seed=2 + seed), tiny.qwen(seed=1, width=24)
    answers = [ids("xyz+"), ids("ghk=12>?")]
    prompts = list(tiny.PROMPTS[:2])
    done = run(
        tmp_path,
        student,
        teacher,
        "tropd",
        script=replay(recorded(8, seed=seed)),
        rows=[{"prompt": p, "teacher_response": a} for p, a in zip(prompts, answers, strict=True)],
        guidance_beta=BETA,
        fkl_top_k=TOP_K,
    )

    prefixes = [answer[: minimal.prefix_length(0, 1, len(answer))] for answer in answers for _ in range(4)]
    written = [y[: 10 - len(x)] for x, y in zip(prefixes, recorded(8, seed=seed), strict=True)]
    rollouts = minimal.pack(groups(prompts), prefixes, written)
    uniforms_BT = torch.zeros(rollouts.tokens[:, 1:].shape, dtype=torch.float64)
    for row, prompt in enumerate(groups(prompts)):
        length = len(prefixes[row]) + len(written[row])
        uniforms_BT[row, len(prompt) - 1 :][:length] = addressed_uniforms(7, 0, [row], length)[0]
    model = clone(student).double()
    loss, trusted_BT = minimal.tropd_loss(model, clone(teacher).double(), rollouts, uniforms_BT)

    log = done.logs[0]
    assert sum(log[f"loss/{region}"] for region in ("trust", "outlier", "guidance")) == pytest.approx(
        loss.item(), rel=ROUNDING_32
    )
    assert log["regions/num_trust"] == trusted_BT.sum()
    assert min(log[f"regions/num_{region}"] for region in ("trust", "outlier", "guidance")) > 0
    gradients = gradients_of(model, loss)
    assert largest_difference(done.gradients, gradients) < ROUNDING_32 * largest(gradients)


@pytest.mark.parametrize("steps", [1, 3, 8, 100, 200])
def test_prefixes_are_as_long_as_the_librarys(minimal, steps):
    for step in range(steps):
        fraction = guidance_fraction("cosine", step, steps)
        for length in range(minimal.MAX_LENGTH + 1):
            expected = prefix_length("cap", fraction, response_length=length, max_length=minimal.MAX_LENGTH)
            assert minimal.prefix_length(step, steps, length) == expected


def test_it_fits_a_page_and_needs_pytorch_and_transformers_alone():
    source = FILE.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 200
    nodes = list(ast.walk(ast.parse(source)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} - sys.stdlib_module_names == {"torch", "transformers"}


def test_it_runs(minimal, monkeypatch, capsys):
    monkeypatch.setattr(minimal, "MAX_LENGTH", 12)
    minimal.main(seed=0, steps=2, num_test=2)
    lines = capsys.readouterr().out.splitlines()
    assert [line[:8].strip() for line in lines] == ["before", "step   0", "step   1", "after"]
    prefixes = [re.search(r"prefix +(\S+) of", line)[1] for line in lines[1:3]]
    assert prefixes == ["11.0", "6.0"]


@pytest.mark.slow
def test_the_student_learns(minimal, monkeypatch, capsys):
    monkeypatch.undo()  # the page's own k and β
    minimal.main(seed=0)
    before, *_, after = capsys.readouterr().out.splitlines()
    accuracy = [float(re.search(r"accuracy (\S+)%", line)[1]) for line in (before, after)]
    kl = [float(re.search(r"KL (\S+)", line)[1]) for line in (before, after)]
    assert accuracy[1] > accuracy[0] + 30  # seed 0: 34% to 86%
    assert kl[1] < 0.9 * kl[0]  # 0.299 to 0.230
