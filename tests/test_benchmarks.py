"""The suite of benchmarks: what it compares, and that the commands it runs are ones that its scripts take."""

import doctest
import importlib.util
import json
import math
import sys
import time
from pathlib import Path

import pytest
import torch

from shipped import student_path, teacher_path
from tropd.objective import (
    Head,
    TokenSignals,
    full_term,
    get_method,
    student_terms,
    token_losses,
    topk_term,
    trust_probability,
    trust_weight,
)

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def load(name: str):
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def suite():
    return load("suite")


def test_what_moved_is_told_as_its_examples_say(suite):
    assert doctest.testmod(suite) == (0, 1)


def test_a_turn_is_after_an_error_that_a_reply_told_of(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    assert doctest.testmod(load("after_errors")) == (0, 2)


def test_the_noise_of_a_shared_machine_has_not_moved(suite):
    assert suite.moved({"a": 1.0}, {"a": 1.09}) == []
    assert suite.moved({"a": 1.0}, {"a": 0.85}) == ["a: 1.00 -> 0.85 (-15%)"]


@pytest.mark.parametrize("kind", ["CPU", "GPU"])
def test_every_option_of_the_suite_is_one_of_its_scripts(suite, kind, monkeypatch, capsys):
    for script, *options in getattr(suite, kind).values():
        monkeypatch.syspath_prepend(str(BENCHMARKS))
        monkeypatch.setattr(sys, "argv", [script, *options, "--help"])
        with pytest.raises(SystemExit) as left:
            load(script.removesuffix(".py")).main()
        assert left.value.code == 0, script
        known = capsys.readouterr().out
        assert [option for option in options if option.startswith("--") and option not in known] == []


def test_a_whole_step_is_measured_on_models_in_folders_and_a_file_of_prompts(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    whole_step = load("whole_step")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Compute {n} + {n}."}) + "\n" for n in range(4)))
    folders = {"student": str(student_path()), "teacher": str(teacher_path())}
    sizes = whole_step.Sizes(**folders, vocabulary=0, rows=2, tokens=8, device="cpu", prompts=prompts)
    for name in ("trl", "gkd"):
        clock = whole_step.one_turn(name, sizes, 2)
        assert [0 < step["tokens"] <= 16 for step in clock.steps] == [True, True] and 0 < clock.peak < 100


def test_the_smallest_point_of_growth_has_sizes(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    growth = load("growth")
    assert growth.Sizes(**growth.BASE, device="cpu").tokens == 128


# benchmarks/pull.py has each method's gradient at the logits in closed form. Here it is drawn from the objective:
# every token of a small vocabulary, accepted by the gate and rejected, with its probability.


@pytest.fixture(scope="module")
def pull():
    return load("pull")


@pytest.fixture
def remains(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return load("remains")


@pytest.fixture(scope="module")
def state():
    """Student and teacher of one state, seven tokens, far enough apart for τ = −2; in float64."""
    student, teacher = torch.randn(2, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return student.log_softmax(-1), (2 * teacher).log_softmax(-1)


def test_the_examples_of_a_pull_hold(pull):
    assert doctest.testmod(pull) == (0, 3)


@pytest.mark.parametrize(
    "name",
    [
        "opd", "mask_outlier", "reopold", "aopd", "tropd_mask", "fkl_outlier", "jsd", "fkl", "gkd", "vopd",
        "mixture_opd", "tv_opd", "power_opd", "tropd_released", "resopd",
    ],
)  # fmt: skip
def test_the_gradient_at_the_logits_is_that_of_the_objective(pull, state, name):
    assert_gradient(state, get_method(name), pull.GRADIENTS[name], pull.States)


@pytest.mark.parametrize("floor", [-2.0, -0.5])
@pytest.mark.parametrize("k", [1, 3, 7])
def test_so_it_is_of_a_clipped_tail(pull, state, k, floor):
    method = get_method("tropd_support", fkl_top_k=k, outlier_tau=floor)
    assert_gradient(state, method, lambda states: pull.support(states, k, floor), pull.States)


@pytest.mark.parametrize("floor", [-2.0, -0.5])
@pytest.mark.parametrize("k", [1, 2, 7])
def test_so_it_is_of_a_union_of_supports_and_of_a_gate_inside(pull, state, k, floor):
    method = get_method("tropd_support", support="union", fkl_top_k=k, outlier_tau=floor)
    assert_gradient(state, method, lambda states: pull.support(states, k, floor, union=True), pull.States)

    def inside(states):
        return pull.gated(states, trust_probability(states.log_ratio), pull.support(states, k, floor, samples=False))

    method = get_method("fkl_outlier", outlier="rkl_direct", fkl_top_k=k, outlier_tau=floor)
    assert_gradient(state, method, inside, pull.States)


def assert_gradient(state, method, closed_form, states):
    student, teacher = state
    assert (teacher - student).min() < -2 < 0 < (teacher - student).max()
    mean, square = torch.zeros(7, dtype=torch.float64), 0.0
    for token in range(7):
        chances = drawn_gradients(method, student, teacher, token)
        assert sum(chance for chance, _ in chances) == pytest.approx(1)
        for chance, gradient in chances:
            mean += student[token].exp() * chance * gradient
            square += float(student[token].exp() * chance * gradient.square().sum())
    found = closed_form(states(student[None], teacher[None], torch.zeros(1)))
    torch.testing.assert_close(found.mean[0], mean)
    assert float(found.square[0]) == pytest.approx(square)


def drawn_gradients(method, student, teacher, token):
    """Of the loss of a sampled token, by the logits: (chance, gradient) where the gate accepts it, and where not."""
    ratio, ids = (teacher - student)[token][None], torch.tensor([token])
    accept = float(ratio.clamp(max=0).exp()) if method.gate == "bernoulli" else 1.0
    return [
        (chance, gradient_of(method, student, teacher, ids, ratio, uniform))
        for chance, uniform in ((accept, 0.0), (1 - accept, 1 - 1e-9))
        if chance
    ]


def gradient_of(method, student, teacher, ids, ratio, uniform):
    order = teacher.argsort(descending=True)[None]  # a forward KL of as many as there are
    if method.gate == "support" or method.outlier == "rkl_direct":
        order = order[:, : method.fkl_top_k]
    selected = (order == ids).any(-1) | (method.support == "union")  # there the loss finds what is in it
    trust = trust_weight(
        method.gate,
        ratio,
        uniforms=torch.tensor([uniform]),
        tau=method.outlier_tau,
        selected=selected,
    )
    signals = TokenSignals(student[ids], teacher[ids], trust, 1 - trust, torch.zeros_like(trust))
    index, head = torch.arange(1), Head(torch.eye(7, dtype=torch.float64))
    term = None
    if method.needs_full_teacher:
        term = full_term(method, signals, index, teacher[None], head, ids)
    elif method.needs_topk:
        term = topk_term(method, signals, index, order, teacher[order])
    logits = student[None].clone().requires_grad_()
    logp, values, _ = student_terms(logits, head, ids, term)
    losses = token_losses(method, signals, logp, values)
    return torch.autograd.grad(losses.trust.sum() + losses.outlier.sum(), logits)[0][0]


def test_what_is_left_is_told_by_region_place_and_kind(remains):
    student = torch.tensor([[0.6, 0.3, 0.1], [0.9, 0.05, 0.05]], dtype=torch.float64)
    teacher = torch.tensor([[0.6, 0.3999, 0.0001], [0.9, 0.05, 0.05]], dtype=torch.float64)
    states = remains.States(student.log(), teacher.log(), torch.tensor([0.0, 0.5]))
    found = remains.remains(states, {"last": torch.tensor([False, False, True])})
    far = 0.1 * math.log(0.1 / 0.0001) / 2
    assert found["reverse_kl/far"] == pytest.approx(far) and found["reverse_kl/outlier"] == 0
    assert found["reverse_kl"] == pytest.approx(far + 0.3 * math.log(0.3 / 0.3999) / 2)
    assert found["total_variation"] == pytest.approx(0.0999 / 2)
    assert found["excluded"] == pytest.approx(5) and found["excluded/last"] == pytest.approx(5)
    assert found["excluded/first"] == pytest.approx(10) and found["excluded/middle"] == 0


def test_reverse_kl_pulls_at_what_the_teacher_excludes_and_masking_does_not(pull, state):
    student, teacher = (logps[None] for logps in state)
    states = pull.States(student, torch.cat([teacher[:, :-1], teacher[:, -1:] - 20], 1), torch.zeros(1))
    pulls = {name: pull.pull(states, of(states)) for name, of in pull.GRADIENTS.items()}
    assert pulls["gkd"] > pulls["opd"] > pulls["mask_outlier"], "one mean with and without noise; no such token"
    assert pull.signal(pull.GRADIENTS["gkd"](states)) == pytest.approx(1)


# ---------------------------------------------------------------------- gpu_engines.py


@pytest.fixture
def engines(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    made = load("gpu_engines")
    monkeypatch.setitem(sys.modules, made.__name__, made)
    return made


def test_what_engines_cost_each_other_is_reckoned_as_its_example_says(engines):
    assert doctest.testmod(engines) == (0, 3)


WRITES = "import json, pathlib, sys; pathlib.Path(sys.argv[2]).write_text(json.dumps({'steps': [1]}))"


def test_a_phase_over_its_budget_is_ended_and_what_it_had_measured_is_kept(engines, tmp_path):
    endless = [
        engines.Phase("slow", 3.0, ["-c", f"{WRITES}; import time; time.sleep(600)"]),
        engines.Phase("fails", 60.0, ["-c", f"{WRITES}; raise SystemExit('no such device')"]),
        engines.Phase("fine", 60.0, ["-c", WRITES]),
    ]
    record, kept = {"phases": {}, "ratios": {}}, tmp_path / "kept.json"
    began = time.monotonic()
    engines.measure(endless, record, kept, began + 300)
    assert time.monotonic() - began < 60
    found = json.loads(kept.read_text())["phases"]
    assert [one["status"] for one in found.values()] == ["ended after 3 s, its budget", "failed", "done"]
    assert [one["figures"] for one in found.values()] == [{"steps": [1]}] * 3
    assert "no such device" in found["fails"]["said"] and "said" not in found["fine"]
    engines.measure(endless[2:], record, kept, time.monotonic() + 1)
    assert json.loads(kept.read_text())["phases"]["fine"]["status"] == "no time left"
    assert [path.name for path in tmp_path.iterdir()] == ["kept.json"]


def test_a_run_with_the_own_engine_is_measured_step_by_step(engines, tmp_path):
    assert engines.make_models(engines.TINY, tmp_path)["parameters"] > 0
    engines.train(engines.TINY, tmp_path, "own", "tropd", tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["engine"] is None and len(found["steps"]) == engines.TINY.steps
    for one in found["steps"]:
        assert 0 < one["rollout"] < one["step"] and one["sampler/logp_gap"] == pytest.approx(0.0, abs=1e-4)
        assert one["tokens"] == engines.TINY.rows * (engines.TINY.response - one["guidance/prefix_length"])
    assert set(engines.per_token({"figures": found})) == {"step", "rollout"}


def test_its_phases_are_commands_of_its_scripts_and_fit_into_their_time(engines, tmp_path, monkeypatch, capsys):
    whole = engines.phases(engines.Sizes(), False, tmp_path)
    assert sum(phase.seconds for phase in whole) <= 60 * engines.MINUTES
    for phase in whole:
        script, *options = phase.command
        monkeypatch.setattr(sys, "argv", [script, *options, "--json", "x", "--help"])
        with pytest.raises(SystemExit) as left:
            load(Path(script).stem).main()
        assert left.value.code == 0, phase.name


@pytest.mark.parametrize("work", ["tropd", "support", "k1"])
def test_the_peers_of_the_head_agree(work):
    head = load("head")
    bench = head.Bench(head.Setting(work, 64, 8, 24, "float32", 0.5, 4), "cpu")
    losses = head.timed(bench, bench.peers(["plain", "fused"], [2]), 1, "cpu")["losses"]
    assert losses["fused"] == pytest.approx(losses["plain"], abs=1e-5) and len(losses) == 3
