"""The build repeats itself: batches are a function of the step, and an interruption changes no weight."""

from dataclasses import replace

import pytest
import torch
from transformers import Qwen3ForCausalLM

from tools.proving_ground import build, healing, learning, measuring
from tools.proving_ground.batches import BATCHES_IN_POOL, Mixture, batch
from tools.proving_ground.build import load, save_folder
from tools.proving_ground.learning import Plan, Progress, train
from tools.proving_ground.measuring import distance, mean_entropy, roll_out
from tools.proving_ground.plans import generalist_plan, specialist_plan, student_config, student_plan, teacher_config
from tools.proving_ground.tokenizer import build_tokenizer
from tropd.proving_ground.domains import DOMAINS
from tropd.proving_ground.family import MODELS

MIXTURE = Mixture(tuple((name, 1.0) for name in DOMAINS), seed=0, level=1)
PLAN = Plan("tiny", MIXTURE, steps=6, learning_rate=1e-3, batch_size=2, steps_between_evaluations=3)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(autouse=True)
def _short_responses_on_one_thread(monkeypatch):
    monkeypatch.setattr(measuring, "MAX_NEW_TOKENS", 6)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # models this small only lose by waiting for a second
    yield
    torch.set_num_threads(threads)


def _student(seed=0):
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(student_config()).eval()


def test_a_batch_is_a_function_of_seed_and_step(tokenizer):
    ids, labels = batch(MIXTURE, tokenizer, 4, step=BATCHES_IN_POOL + 1)
    batch(MIXTURE, tokenizer, 4, step=0)
    again = batch(MIXTURE, tokenizer, 4, step=BATCHES_IN_POOL + 1)
    assert torch.equal(ids, again[0]) and torch.equal(labels, again[1])
    assert ids.shape != batch(MIXTURE, tokenizer, 4, step=2)[0].shape or not torch.equal(
        ids, batch(MIXTURE, tokenizer, 4, step=2)[0]
    )


def test_labels_are_the_response_and_its_eos(tokenizer):
    ids, labels = batch(MIXTURE, tokenizer, 8, step=3)
    for row, targets in zip(ids, labels, strict=True):
        learned = row[targets >= 0]
        assert torch.equal(learned, targets[targets >= 0])
        assert learned[-1] == tokenizer.eos_token_id
        prompt = tokenizer.decode(row[: int((targets >= 0).nonzero()[0])])
        domain = next(kind for kind in DOMAINS.values() if _reads(kind, prompt))
        text = tokenizer.decode(learned, skip_special_tokens=True)
        assert domain.judge(domain.parse(prompt), text).correct


def test_little_of_a_batch_is_padding(tokenizer):
    mixture = Mixture(MIXTURE.shares, seed=0)
    batches = [batch(mixture, tokenizer, 16, step)[0] for step in range(BATCHES_IN_POOL)]
    padding = sum(int((ids == tokenizer.pad_token_id).sum()) for ids in batches)
    assert padding < 0.1 * sum(ids.numel() for ids in batches)


def test_an_interrupted_training_goes_on_to_the_same_weights(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(learning, "SECONDS_BETWEEN_SAVES", 0.0)
    whole, resumed = _student(), _student()
    train(PLAN, whole, tokenizer, tmp_path / "whole", lambda _: {"code": 0.3})
    with monkeypatch.context() as patch:
        patch.setattr(learning, "batch", _interrupt_at_step(4))
        with pytest.raises(KeyboardInterrupt):
            train(PLAN, resumed, tokenizer, tmp_path / "parts", lambda _: {"code": 0.3})
    resumed = _student(seed=1)
    progress = train(PLAN, resumed, tokenizer, tmp_path / "parts", lambda _: {"code": 0.3})
    assert progress.step == 6 and [step for step, _ in progress.history] == [3, 6]
    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], weight, rtol=0, atol=0)


def test_training_stops_once_every_domain_is_good_enough(tokenizer, tmp_path):
    plan = Plan("brief", MIXTURE, 6, 1e-3, enough=0.2, batch_size=2, steps_between_evaluations=2)
    found = iter([{"code": 0.5, "instructions": 0.1}, {"code": 0.6, "instructions": 0.2}])
    assert train(plan, _student(), tokenizer, tmp_path, lambda _: next(found)).step == 4


def test_the_pruned_student_is_the_generalist_without_layers_healed_by_sft(tokenizer, monkeypatch):
    torch.manual_seed(0)
    teacher = Qwen3ForCausalLM(teacher_config())
    last = teacher.model.layers[3].mlp.up_proj.weight.detach().clone()
    monkeypatch.setattr(healing, "BATCH_SIZE", 2)
    history = healing.heal(student := teacher, tokenizer, 0, lambda _: {"code": 0.1}, steps=2)
    assert history == [(2, {"code": 0.1})]
    assert student.config.num_hidden_layers == len(student.model.layers) == len(healing.KEPT_LAYERS)
    change = (student.model.layers[-1].mlp.up_proj.weight - last).norm() / last.norm()
    assert 0 < change < 0.2


def test_healing_stops_once_every_domain_is_good_enough(tokenizer, monkeypatch):
    monkeypatch.setattr(healing, "BATCH_SIZE", 2)
    monkeypatch.setattr(healing, "STEPS_BETWEEN_EVALUATIONS", 1)
    found = iter([{"code": 0.5, "instructions": 0.04}, {"code": 0.6, "instructions": healing.ENOUGH}])
    assert len(healing.heal(Qwen3ForCausalLM(teacher_config()), tokenizer, 0, lambda _: next(found), steps=4)) == 2


def test_a_domain_that_is_good_enough_rests_while_others_learn():
    plan = replace(PLAN, enough=0.2)
    shares = dict(learning._mixture_now(plan, Progress(history=[(3, {"code": 0.3, "instructions": 0.1})])).shares)
    assert shares == {"mathematics": 1.0, "code": learning.RESTING_SHARE, "instructions": 1.0}
    assert learning._mixture_now(plan, Progress()) == plan.mixture


def test_a_saved_folder_loads_as_float32_and_measures_the_same(tokenizer, tmp_path):
    student = _student()
    save_folder(student, tokenizer, tmp_path / "student")
    loaded = load(tmp_path / "student")
    assert loaded.dtype == torch.float32
    assert loaded.generation_config.eos_token_id == tokenizer.eos_token_id
    assert distance(student, loaded, tokenizer, "code", count=2)["total_variation"] == 0.0
    assert 4 < mean_entropy(loaded, tokenizer, "code", count=2) <= torch.log(torch.tensor(len(tokenizer))) + 1e-3


def test_a_rollouts_mask_leaves_out_what_comes_after_eos(tokenizer):
    length, ids, mask = roll_out(_student(), tokenizer, ["write", "write lines of"], temperature=1.0)
    for row, marks in zip(ids[:, length:], mask[:, length:], strict=True):
        ends = (row == tokenizer.eos_token_id).nonzero().flatten()
        assert int(marks.sum()) == (int(ends[0]) + 1 if len(ends) else len(row))


def test_work_that_is_done_is_not_done_again(tmp_path):
    calls = []
    for _ in range(2):
        assert build._once(tmp_path, "part", lambda: calls.append(1) or {"a": 1}) == {"a": 1}
    assert len(calls) == 1


def test_one_model_can_be_built_in_a_process_of_its_own(tmp_path, monkeypatch):
    built = []
    monkeypatch.setattr(build, "_trained", lambda name, *rest: built.append(name))
    monkeypatch.setattr("sys.argv", ["build", "--out", str(tmp_path), "--only", "student"])
    build.main()
    assert built == ["student"] and not (tmp_path / "BUILD.json").exists()


def test_every_model_of_the_family_has_its_plan_and_its_own_data():
    plans = [generalist_plan(0), *(specialist_plan(domain, 0) for domain in DOMAINS), student_plan(0)]
    assert [plan.name for plan in plans] == [name for name in MODELS if name != "pruned"]
    assert generalist_plan(0).mixture != generalist_plan(1).mixture


def _reads(kind, prompt):
    try:
        return bool(kind.parse(prompt))
    except ValueError:
        return False


def _interrupt_at_step(last):
    def interrupting(mixture, tokenizer, size, step):
        if step == last:
            raise KeyboardInterrupt
        return batch(mixture, tokenizer, size, step)

    return interrupting
