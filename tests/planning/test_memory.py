"""Memory: by hand, by autograd's own count, and how it answers to each setting."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from tropd.models.hidden_states import expose_hidden_states
from tropd.planning import available, model_shape, plan_run
from tropd.planning.activations import saved_layer_bytes
from tropd.planning.memory import estimate_memory, human_bytes
from tropd.planning.stages import CPU_OVERHEAD_BYTES


def parts(setup, stage, first=False):
    estimate = estimate_memory(setup)
    stages = estimate.first_stages if first else estimate.stages
    return next(found.parts for found in stages if found.name == stage)


def test_by_hand(setup):
    rollout = parts(setup, "rollout")
    assert rollout["student weights"] == 1000 * 4
    assert rollout["teacher weights"] == 3000 * 4
    assert rollout["optimiser state"] == 2 * 1000 * 4
    assert rollout["overhead"] == CPU_OVERHEAD_BYTES
    # Reading 4 prompts of 4 tokens: keys and values of width 5 in 2 layers and one copy, in float32; a layer in flight,
    # of 4 residual streams and 3 tensors of the feed-forward; the mask.
    assert rollout["KV cache"] == 2 * 5 * 3 * 4 * 4 * 4
    assert rollout["prompt activations"] == 4 * 4 * (4 * 10 + 3 * 20) * 4 + 4 * 4 * 4
    # A micro-batch of 2 rows of 12 tokens. A layer keeps for each token: two norms of 12·10 bytes; q and output, k and
    # v (repeated to q's width, for there is a mask), 4 bytes each; a log-normaliser for each of 2 heads; the mask, 12
    # wide; four times 20 in the feed-forward.
    layer = 2 * 12 * (2 * 12 * 10 + 4 * 4 * 10 + 4 * 2 + 4 * 12 + 4 * 4 * 20)
    last = 2 * 12 * 10 * 12 + 2 * 8 * 10 * 4 + 2 * 12 * 12
    in_flight = 2 * 12 * (3 * 20 + 2 * 10) * 4
    update = parts(setup, "update")
    assert update["activations"] == 2 * layer + last + in_flight
    assert update["gradients"] == 1000 * 4  # of the first micro-batch
    assert update["head gradient"] == 100 * 4


def test_a_total_is_the_sum_of_its_parts_and_the_peak_is_the_largest(setup):
    estimate = estimate_memory(setup)
    assert all(stage.total == sum(stage.parts.values()) for stage in estimate.stages)
    assert estimate.total == estimate.peak.total == max(stage.total for stage in estimate.stages)


def test_optimiser_state_appears_with_the_first_update(setup):
    assert "optimiser state" not in parts(setup, "rollout", first=True)
    assert parts(setup, "rollout")["optimiser state"] == 8000
    small = replace(setup, work=replace(setup.work, micro_rows=1, update_rows=1, longest_prompt=1, longest_response=1))
    assert parts(small, "update", first=True)["optimiser state"] == 8000  # the step itself is the largest moment
    assert estimate_memory(setup).first_peak.total < estimate_memory(setup).peak.total


@pytest.mark.parametrize("kind", [LlamaConfig, Qwen3Config])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("mode", ["float32", "bfloat16", "autocast"])
def test_a_layer_keeps_what_autograd_says(setup, kind, padded, mode):
    sizes = {"vocab_size": 32, "hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4}
    rows, length = (3, 40) if padded else (1, 120)
    kept = [_kept(kind, sizes, layers, rows, length, mode) for layers in (1, 2)]
    shape = model_shape(kind(**sizes, num_hidden_layers=1, num_key_value_heads=2, head_dim=16))
    half = mode != "float32"
    planned = replace(
        setup,
        student=shape,
        work=replace(setup.work, longest_prompt=10, longest_response=length - 10),
        weight_bytes=2 if mode == "bfloat16" else 4,
        compute_bytes=2 if half else 4,
        autocast=mode == "autocast",
    )
    found = kept[1] - kept[0]
    if mode == "autocast":  # half-precision copies of the matrices are a part of their own
        found -= 2 * (shape.body_parameters - 3 * 64 - 32 * shape.query_norm)
    assert saved_layer_bytes(planned, rows) == pytest.approx(found, rel=0.02)


def _kept(kind, sizes, layers, rows, length, mode):
    """Bytes of the distinct storages that autograd saves in a forward pass, parameters left out."""
    config = kind(**sizes, num_hidden_layers=layers, num_key_value_heads=2, head_dim=16)
    model = AutoModelForCausalLM.from_config(config)
    model.to(torch.bfloat16 if mode == "bfloat16" else torch.float32)
    expose_hidden_states(model)
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    saved = {}

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    mask = torch.ones(rows, length, dtype=torch.long)
    mask[0, -1] = 0 if rows > 1 else 1
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=mode == "autocast"),
    ):
        states = model(input_ids=torch.ones_like(mask), attention_mask=mask, on_hidden=lambda hidden, head: hidden)
    assert states.requires_grad
    return sum(t.untyped_storage().nbytes() for pointer, t in saved.items() if pointer not in own)


def test_a_long_rollout_is_all_cache_and_logits(setup):
    rollout = parts(replace(setup, work=replace(setup.work, longest_prompt=1, longest_response=11)), "rollout")
    assert rollout["KV cache"] == 2 * 5 * 3 * 4 * 12 * 4
    assert rollout["sampler"] == 4 * 4 * 4 * 10  # four float32 tensors of 4 rows over a vocabulary of 10
    guided = replace(setup, guided=True)
    assert parts(guided, "rollout")["prompt activations"] > parts(setup, "rollout")["prompt activations"]


@pytest.mark.parametrize("field", ["rollout_rows", "micro_rows", "teacher_rows", "longest_prompt", "longest_response"])
def test_more_rows_or_tokens_never_take_less(setup, field):
    more = replace(setup, work=replace(setup.work, **{field: 4 * getattr(setup.work, field)}))
    before, after = estimate_memory(setup), estimate_memory(more)
    assert all(b.total <= a.total for b, a in zip(before.stages, after.stages, strict=True))
    assert sum(b.total for b in before.stages) < sum(a.total for a in after.stages)


@pytest.mark.parametrize(("at_once", "rows"), [(None, 4), (1, 1), (3, 3), (9, 4)])
def test_the_cache_holds_the_rows_that_are_written_at_once(setup, at_once, rows):
    long = replace(setup.work, longest_prompt=1, longest_response=11)
    fewer = replace(setup, teacher_writes=True, work=replace(long, rows_at_once=at_once))
    assert parts(fewer, "rollout")["KV cache"] == 2 * 5 * 3 * rows * 12 * 4
    assert parts(fewer, "rollout")["sampler"] == rows * 4 * 4 * 10
    assert parts(fewer, "teacher prefixes")["KV cache"] == 2 * 5 * 3 * min(rows, 2) * 12 * 4  # of 2 prompts
    whole = replace(fewer, work=long)
    for stage in ("student scoring", "teacher scoring", "update"):
        assert parts(fewer, stage) == parts(whole, stage)


def test_the_advice_for_a_large_cache_is_to_write_fewer_rows_at_once(setup):
    work = replace(setup.work, rollout_rows=40_000, micro_rows=1, longest_response=400, rows_at_once=500)
    cached = replace(setup, work=work)
    assert "rollout_batch_size below 500" in estimate_memory(cached).fits(1).sentence
    prefixes = replace(cached, vllm="server", guided=True, teacher_writes=True)
    assert "rollout_batch_size" not in estimate_memory(prefixes).fits(1).sentence
    least = replace(cached, work=replace(cached.work, rows_at_once=1))
    assert "rollout_batch_size" not in estimate_memory(least).fits(1).sentence


def test_checkpointing_keeps_a_layer_and_the_inputs_of_the_others(setup):
    deep = replace(setup, student=replace(setup.student, num_layers=40))
    plain, checkpointed = (parts(replace(deep, checkpointing=on), "update")["activations"] for on in (False, True))
    assert checkpointed < plain / 5


def test_an_adapter_takes_less_than_the_whole_student(setup):
    whole, adapter = estimate_memory(setup), estimate_memory(replace(setup, lora=True, trainable=50))
    assert adapter.total < whole.total
    assert adapter.peak.parts["optimiser state"] == 2 * 50 * 4
    assert adapter.peak.parts["student weights"] == 4000 + 50 * 4
    assert "head gradient" not in adapter.peak.parts


@pytest.mark.parametrize(
    ("optim", "state"),
    [
        ("adamw_torch", 8000),
        ("adamw_bnb_8bit", 2000),
        ("paged_lion_32bit", 4000),
        ("rmsprop_bnb_8bit", 1000),
        ("sgd", 0),
    ],
)
def test_the_optimiser_decides_its_state(setup, optim, state):
    assert parts(replace(setup, optim=optim), "rollout").get("optimiser state", 0) == state


def test_sharding_divides_weights_gradients_and_state(setup):
    shared = replace(setup, num_processes=4, sharded=True)
    rollout, update = parts(shared, "rollout"), parts(shared, "update")
    assert (rollout["student weights"], rollout["teacher weights"], rollout["optimiser state"]) == (1000, 3000, 2000)
    assert update["gradients"] == 1000
    copied = parts(replace(setup, num_processes=4), "update")
    assert copied["gradients"] == 2 * 4000  # data parallelism alone keeps all, and its buckets


def test_a_teacher_that_is_not_sharded_is_whole_and_gathers_nothing(setup):
    whole = replace(setup, num_processes=4, sharded=True, shard_teacher=False)
    scoring = parts(whole, "teacher scoring")
    assert (scoring["student weights"], scoring["teacher weights"]) == (1000, 12000)
    assert "gathered layers" not in scoring and "gathered layers" in parts(whole, "student scoring")


def test_vllm_has_its_own_cache_and_a_share_of_the_device(setup):
    served = estimate_memory(replace(setup, vllm="colocate", vllm_share=0.5))
    assert "KV cache" not in parts(replace(setup, vllm="server"), "rollout")
    need = served.total
    assert served.fits(2 * need + 2).fits
    assert not served.fits(2 * need - 2).fits
    assert "vllm_gpu_memory_utilization=0.5" in served.fits(need).sentence


def test_the_sentence_names_the_stage_the_gap_and_what_to_type(setup):
    large = replace(setup, work=replace(setup.work, micro_rows=64, longest_response=4000))
    estimate = estimate_memory(large)
    assert estimate.fits(estimate.total).fits
    assert "should fit" in estimate.fits(estimate.total).sentence
    sentence = estimate.fits(estimate.total // 2).sentence
    assert human_bytes(estimate.total) in sentence
    assert f"({estimate.peak.name})" in sentence
    assert "gradient_checkpointing=True" in sentence
    few_rows = estimate_memory(replace(large, checkpointing=True)).fits(1).sentence
    assert "per_device_train_batch_size below 64" in few_rows


def test_a_second_step_that_does_not_fit_is_announced(setup):
    estimate = estimate_memory(setup)
    assert "the second not" in estimate.fits(estimate.first_peak.total).sentence
    assert "the second not" not in estimate.fits(estimate.first_peak.total - 1).sentence


def test_the_configuration_decides_dtypes_rows_and_what_is_kept(config):
    student = model_shape(LlamaConfig(vocab_size=32, hidden_size=8, num_hidden_layers=1, num_attention_heads=2))
    teacher = replace(student, stored_bytes=2)

    def setup_of(**changes):
        return plan_run(config(**changes), student, teacher, prompt_tokens=8.0).setup

    plain = setup_of(method="opd", per_device_train_batch_size=4, gradient_accumulation_steps=3)
    assert (plain.weight_bytes, plain.teacher_bytes, plain.autocast) == (4, 2, False)
    assert (plain.work.rollout_rows, plain.work.micro_rows, plain.work.longest) == (12, 4, 72)
    assert (plain.top_k, plain.loss, plain.guided, plain.checkpointing) == (0, "tokens", False, True)
    guided = setup_of(method="tropd", bf16=True)
    assert (guided.autocast, guided.weight_bytes, guided.compute_bytes, guided.top_k) == (True, 4, 2, 64)
    assert guided.teacher_writes
    loaded_half = {"method": "gkd", "bf16": True, "model_init_kwargs": {"dtype": "bfloat16"}}
    kept = setup_of(**loaded_half)
    assert (kept.autocast, kept.weight_bytes, kept.trainable_bytes) == (True, 4, 4)
    half = setup_of(**loaded_half, master_weights=False)
    assert (half.autocast, half.weight_bytes, half.loss) == (False, 2, "divergence")
    assert setup_of(method="gkd", jsd_beta=0.5).loss == "mixture"
    assert plain.scoring_passes == setup_of(method="opd", num_iterations=2).scoring_passes == 0
    assert half.scoring_passes == setup_of(method="opd", rescore_rollouts=True).scoring_passes == 1
    assert setup_of(method="opd", bf16=True, rescore_rollouts=False).scoring_passes == 0
    assert setup_of(method="opd", addressed_sampling=False).scoring_passes == 1
    assert setup_of(method="opd", use_vllm=True).scoring_passes == 1
    assert setup_of(method="opd", use_vllm=True, vllm_importance_sampling_correction=True).scoring_passes == 2
    assert plain.work.decoded_rows == 12
    assert setup_of(method="opd", rollout_batch_size=3, gradient_accumulation_steps=3).work.decoded_rows == 3


def test_the_base_of_an_adapter_stays_in_half_precision(config):
    student = model_shape(LlamaConfig(vocab_size=32, hidden_size=8, num_hidden_layers=1, num_attention_heads=2))
    args = config(method="opd", bf16=True, model_init_kwargs={"dtype": "bfloat16"})
    setup = plan_run(args, student, student, prompt_tokens=8.0, lora_parameters=50).setup
    assert (setup.weight_bytes, setup.trainable_bytes) == (2, 4)


def test_kept_scores_grow_with_the_whole_batch(setup):
    top_k, divergence = replace(setup, top_k=5), replace(setup, loss="divergence")
    assert parts(top_k, "update")["kept top-k"] == 4 * 8 * 5 * 8
    assert parts(divergence, "update")["kept hidden states"] == 4 * 8 * 10 * 4
    assert parts(divergence, "teacher scoring")["kept hidden states"] == 3 * 4 * 8 * 10 * 4


def test_available_memory_respects_the_tightest_control_group(tmp_path, monkeypatch):
    assert available.available_memory(use_cpu=True) > 0
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("3000\n")
    (tmp_path / "memory.stat").write_text("anon 2000\ninactive_file 400\n")
    monkeypatch.setattr(available, "CGROUPS", tmp_path)
    assert available.available_memory(use_cpu=True) == 5000 - 3000 + 400
    (tmp_path / "memory.max").write_text("max\n")
    assert available.available_memory(use_cpu=True) > 5000
