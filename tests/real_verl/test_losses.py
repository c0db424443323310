"""tropd's losses in verl's two stages, on CPU tensors in verl's own nested style."""

import importlib.util

import pytest

if importlib.util.find_spec("verl") is None:
    pytest.skip("verl is not installed: make test-verl", allow_module_level=True)

import torch
from verl.workers.config import DistillationLossConfig

from real_verl.batch import ENDINGS, READ, TOPK, Batch, by_tropd, by_verl, loss_function, settings
from tropd.objective import METHODS
from tropd.verl.losses import least_entropy
from tropd.verl.methods import verl_methods

pytestmark = pytest.mark.slow

METHODS_OF_TOPK = [name for name in verl_methods() if METHODS[name].needs_topk]


def fields_of(name: str) -> dict:
    """Read fewer than the teacher sends, so that the order of the top-k is seen to matter."""
    return {"fkl_top_k": READ} if name in METHODS_OF_TOPK else {}


@pytest.mark.parametrize("padded", [False, True], ids=["nested", "padded"])
@pytest.mark.parametrize("name", [name for name in verl_methods() if name != "eopd"])
def test_loss_and_gradient_are_those_of_tropds_objective(name, padded):
    config, batch = settings(name, **fields_of(name)), Batch()
    loss, gradient, _ = by_verl(config, batch, padded=padded)
    expected, expected_gradient = by_tropd(config, batch)
    assert gradient.abs().max() > 1e-3
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "fields",
    [
        {"loss_mode": "fkl_outlier", "gate": "expected"},
        {"loss_mode": "fkl_outlier", "fkl_truncation": "tail"},
        {"loss_mode": "fkl_outlier", "fkl_truncation": "teacher_renorm", "fkl_weight": 0.5},
        {"loss_mode": "fkl_outlier", "outlier": "fkl_scalar"},
        {"loss_mode": "fkl_outlier", "outlier": "rkl_direct"},
        {"loss_mode": "tropd", "ratio_clip": 0.2, "gate_seed": 7},
        {"loss_mode": "reopold", "outlier_tau": -1.0},
        {"loss_mode": "tropd_support", "outlier": "mask"},
        {"loss_mode": "tropd_support", "outlier_tau": -0.5},
        {"loss_mode": "vopd", "baseline": "top_k"},
        {"loss_mode": "opd", "advantage": "power", "advantage_alpha": 2.0},
        {"loss_mode": "tv_opd", "advantage_scale": "none"},
    ],
    ids=lambda fields: "-".join(map(str, fields.values())),
)
def test_a_part_that_is_changed_is_changed_in_both(fields):
    fields = {**fields, **fields_of(fields["loss_mode"])}
    if "baseline" in fields:
        fields["fkl_top_k"] = READ
    config, batch = settings(fields.pop("loss_mode"), **fields), Batch(seed=1)
    loss, gradient, _ = by_verl(config, batch)
    expected, expected_gradient = by_tropd(config, batch)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["tropd", "opd", "aopd", "jsd", "resopd", "tropd_support"])
def test_endings_are_one_action_before_the_first_update_exactly(name):
    """π_old of an ending comes from verl, by its own id; it is made that of the set with the share of now."""
    config, batch = settings(name, endings=list(ENDINGS), **fields_of(name)), Batch(seed=2)
    loss, gradient, _ = by_verl(config, batch, old=batch.logits)
    expected, expected_gradient = by_tropd(config, batch, old=batch.logits)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-10)
    apart = by_verl(settings(name, **fields_of(name)), batch, old=batch.logits)[1]
    assert (apart - gradient).abs().max() > 1e-3


def test_eopd_takes_the_least_entropy_that_the_top_k_leaves():
    """A threshold outside of what the bound leaves open gives what the whole distribution gives; inside it may not."""
    batch = Batch(seed=3)
    entropy = -(batch.teacher.softmax(-1) * batch.teacher.log_softmax(-1)).sum(-1)[batch.learned()]
    bound = least_entropy(batch.sent_logp[batch.learned(), :TOPK])
    assert ((bound > 0) & (bound <= entropy)).all() and bound.mean() > 0.5 * entropy.mean()
    apart = 0.05
    for tau in (float(entropy.min()) - 1.0, float(entropy.max()) + apart):
        config = settings("eopd", teacher_entropy_tau=max(tau, 0.0), fkl_top_k=READ)
        loss, gradient, _ = by_verl(config, batch)
        expected, expected_gradient = by_tropd(config, batch)
        torch.testing.assert_close(loss, expected, rtol=0, atol=1e-10)
        torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-10)


def test_the_score_beyond_rank_k_decides_the_gate():
    batch = Batch()
    config = settings("fkl_outlier", gate="expected", fkl_top_k=READ)
    _, gradient, metrics = by_verl(config, batch)
    assert metrics["distillation/sampled_outside_topk"] > 0.3
    batch.sent_logp[:, TOPK] = batch.sent_logp[:, TOPK - 1]  # the k-th score in its place, as verl would leave it
    changed = by_verl(config, batch)[1]
    assert (gradient - changed).abs().max() > 1e-3


def test_the_draws_of_a_sequence_do_not_depend_on_the_batch_it_is_in():
    from tropd.verl.losses import uniforms

    data, config = Batch().data(), settings("tropd", fkl_top_k=READ)
    tokens = data["responses"].to_padded_tensor(0)
    everywhere = torch.ones_like(tokens, dtype=torch.bool)
    three = uniforms(config, tokens, everywhere, data).view(tokens.shape)
    alone = {"input_ids": torch.nested.as_nested_tensor([data["input_ids"].unbind()[1]], layout=torch.jagged)}
    one = uniforms(config, tokens[1:2], everywhere[1:2], alone)
    assert torch.equal(three[1], one) and not torch.equal(three[0], three[1])


def test_a_response_that_is_masked_whole_adds_nothing():
    batch = Batch()
    batch.mask = [torch.zeros_like(mask) for mask in batch.mask]
    numbers = loss_function(settings("tropd", fkl_top_k=READ))(
        student_logits=batch.logits.requires_grad_().unsqueeze(0), data=batch.data()
    )
    assert all(not values.any() for values in numbers.values())


def test_scores_without_the_sampled_token_are_refused():
    batch = Batch(columns=TOPK)
    with pytest.raises(ValueError, match=f"have {TOPK} columns, but top-{TOPK} and the sampled token"):
        by_verl(settings("tropd", fkl_top_k=READ), batch)


def test_scores_of_other_tokens_are_refused():
    batch = Batch()
    batch.sent_ids[:, TOPK] = (batch.sent_ids[:, TOPK] + 1) % 40
    with pytest.raises(ValueError, match="13 of 13 response tokens have the teacher's score of a different token"):
        by_verl(settings("tropd", fkl_top_k=READ), batch)


def test_another_temperature_is_refused():
    with pytest.raises(ValueError, match=r"temperature is 0\.7.*rollout\.temperature=1\.0"):
        by_verl(settings("tropd", fkl_top_k=READ), Batch(), temperature=0.7)


def test_megatron_is_refused():
    function = loss_function(settings("tropd", fkl_top_k=READ), strategy="megatron")
    with pytest.raises(ValueError, match="strategy is 'megatron'; tropd's losses were written for fsdp and fsdp2"):
        function(student_logits=Batch().logits.unsqueeze(0), data=Batch().data())


def test_verls_own_configuration_is_refused_for_our_loss():
    config = DistillationLossConfig(
        loss_mode="tropd", topk=TOPK, use_policy_gradient=False, loss_max_clamp=None, log_prob_min_clamp=None
    )
    with pytest.raises(ValueError, match=r"_target_=tropd\.verl\.config\.TropdLossConfig"):
        loss_function(config)(model_output={}, data=Batch().data())


def test_verls_own_top_k_loss_is_as_it_was():
    """With the k columns that the client hands on to it."""
    import verl.trainer.distillation.fsdp.losses as of_verl

    batch = Batch(columns=TOPK)
    config = DistillationLossConfig(loss_mode="forward_kl_topk", topk=TOPK, use_policy_gradient=False)
    data = batch.data()
    numbers = loss_function(config)(student_logits=batch.logits.unsqueeze(0), data=data)
    expected = of_verl.compute_forward_kl_topk(
        batch.logits.unsqueeze(0),
        data["teacher_logprobs"],
        data["teacher_ids"].long(),
        type("Config", (), {"distillation_loss": config}),
        "thd",
    )
    assert numbers.keys() == expected.keys()
    assert all(torch.equal(numbers[name], expected[name]) for name in expected)
