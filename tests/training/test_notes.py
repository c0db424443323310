"""What the sampler notes of its tokens stands in for a pass of the student over its rollouts, and says the same."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

from training import tiny
from training.test_addressed_sampling import parsed, with_tools  # noqa: F401  (a fixture)
from training.tiny import EOS, PAD, build, clone, config, ids, run
from tropd.models.hidden_states import rotates_by_length
from tropd.training import step
from tropd.training.distributed.sharding import reads_by_length
from tropd.training.records import Prefix
from tropd.training.rollout_stage import notes_suffice
from tropd.training.step import scores_of_sampler

ROWS = [{"prompt": prompt, "teacher_response": "xyz+"} for prompt in tiny.PROMPTS]
GUIDED = {"guidance_schedule": "constant", "guidance_length": "share", "guidance_min_tail": 2, "rows": ROWS}


def gemma():
    torch.manual_seed(3)
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "final_logit_softcapping": 5.0}
    ends = {"pad_token_id": PAD, "eos_token_id": EOS, "attn_implementation": "eager"}
    return Gemma2ForCausalLM(Gemma2Config(**sizes, **heads, **ends, initializer_range=0.4))


def gpt2():
    torch.manual_seed(4)
    sizes = {"vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 128, "initializer_range": 0.3}
    return GPT2LMHeadModel(GPT2Config(**sizes, pad_token_id=PAD, eos_token_id=EOS, bos_token_id=1))


FAMILIES = {"llama": lambda: tiny.llama(seed=1), "qwen3": lambda: tiny.qwen(seed=1), "gemma2": gemma, "gpt2": gpt2}


def rolled_out(trainer, rows=ROWS):
    trainer.state.max_steps = 4
    trainer.model.train()
    return tiny.roll_out(trainer, [dict(row) for row in rows for _ in range(2)])


@pytest.fixture
def passes(monkeypatch):
    """The passes that score the student, by their numbers of rows."""
    calls, score = [], step.score_student

    def counted(student, rollouts, **settings):
        calls.append(len(rollouts))
        return score(student, rollouts, **settings)

    monkeypatch.setattr(step, "score_student", counted)
    return calls


SAMPLED = {
    "plain": {},
    "cold": {"temperature": 0.6},
    "cut": {"temperature": 1.3, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.2},
    "few at once": {"rollout_batch_size": 3},
    "guided": GUIDED,
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sampled", SAMPLED)
def test_the_sampler_notes_what_a_pass_finds(tmp_path, family, sampled):
    """Of the whole softmax at the sampling temperature, whatever is cut off or penalised before the draw."""
    method = "tropd" if sampled == "guided" else "opd"
    trainer = build(tmp_path, FAMILIES[family](), tiny.llama(seed=2), method, **SAMPLED[sampled])
    rollouts = rolled_out(trainer)
    noted = scores_of_sampler(rollouts, torch.device("cpu"))
    found = tiny.score_student(trainer, rollouts)
    ours = torch.tensor([place >= r.prefix_length for r in rollouts for place in r.scored_positions()])
    assert ours.sum() > 20 and ours.all() == (sampled != "guided")
    torch.testing.assert_close(noted.rollout_logp[ours], found.trainer_logp[ours], atol=3e-5, rtol=0)
    torch.testing.assert_close(noted.entropy[ours], found.entropy[ours], atol=3e-5, rtol=0)
    assert noted.rollout_logp[~ours].isnan().all()
    assert noted.trainer_logp.isnan().all()


@pytest.mark.parametrize("guided", [False, True])
def test_rows_that_come_back_from_a_tool_are_noted_behind_its_answer(tmp_path, monkeypatch, parsed, guided):  # noqa: F811
    trainer = with_tools(build(tmp_path, tiny.llama(seed=1), tiny.llama(seed=2), "opd", max_completion_length=40))
    rows = [{"prompt": [{"role": "user", "content": text}]} for text in ("ab", "cde") for _ in range(4)]
    starts = [Prefix(ids("xyz"[: 1 + row % 3]) if guided else []) for row in range(8)]
    trainer.model.train()
    rollouts = trainer.rollout_stage.roll_out(rows, 0, starts)
    assert any(rollout.external and any(rollout.external) for rollout in rollouts)
    noted, found = scores_of_sampler(rollouts, torch.device("cpu")), tiny.score_student(trainer, rollouts)
    ours = torch.tensor([place >= r.prefix_length for r in rollouts for place in r.scored_positions()])
    torch.testing.assert_close(noted.rollout_logp[ours], found.trainer_logp[ours], atol=3e-5, rtol=0)


@pytest.mark.parametrize("method", ["opd", "tropd", "gkd", "entropy_opd", "eopd", "reopold_2stage"])
def test_training_without_the_pass_is_training_with_it(tmp_path, student, teacher, method):
    options = {"max_steps": 3, "rows": ROWS} | (GUIDED if method == "tropd" else {})
    options |= {"teacher_entropy_tau": 3.0} if method == "eopd" else {}
    without = run(tmp_path / "0", student, teacher, method, **options)
    with_it = run(tmp_path / "1", student, teacher, method, rescore_rollouts=True, **options)
    for ours, theirs in zip(without.steps, with_it.steps, strict=True):
        scale = max(tiny.largest(theirs.gradients), 1.0)
        assert tiny.largest_difference(ours.gradients, theirs.gradients) < 5e-5 * scale
    for ours, theirs in zip(without.logs, with_it.logs, strict=True):
        assert theirs.keys() - ours.keys() <= {"speed/update"}
        shared = [name for name in ours.keys() & theirs.keys() if not name.startswith("speed/") and name != "step_time"]
        assert {name: ours[name] for name in shared} == pytest.approx(
            {name: theirs[name] for name in shared}, abs=2e-4, rel=1e-4
        )


def test_no_pass_is_made_where_the_notes_do(tmp_path, student, teacher, passes):
    trainer = build(tmp_path, clone(student), clone(teacher), "tropd", **GUIDED, max_steps=2, num_iterations=2)
    trainer.train()
    assert passes == []
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logged[0]["sampler/logp_gap"] < 3e-5
    assert logged[0]["guidance/nll"] > 0
    assert "sampler/logp_gap" not in logged[1], "the second update's policy is another one"


def test_evaluation_makes_none_either(tmp_path, student, teacher, passes):
    trainer = build(
        tmp_path, clone(student), clone(teacher), "opd", trainer_options={"eval_dataset": tiny.same_dataset()}
    )
    assert trainer.evaluate()["eval_sampler/logp_gap"] < 3e-5
    assert passes == []


@pytest.mark.parametrize("why", ["asked for", "another sampler", "half precision", "another loop", "greedy"])
def test_a_pass_is_made_where_they_do_not(tmp_path, monkeypatch, student, teacher, why, passes):
    options = {"asked for": {"rescore_rollouts": True}, "half precision": {"bf16": True}}.get(why, {})
    if why == "another sampler":
        options["script"] = tiny.replay(tiny.recorded(8))
    trainer = build(tmp_path, clone(student), clone(teacher), "opd", **options)
    if why == "another loop":
        monkeypatch.setattr("tropd.rollout.engine.noise.why_plain", lambda *_: "the test")
    if why == "greedy":
        trainer.generation_config.do_sample = trainer.generation_kwargs["do_sample"] = False
    trainer.train()
    assert passes == [8]


def test_notes_belong_to_the_tokens_that_were_drawn(tmp_path, student, teacher, passes):
    """A host, or a user's function, that puts other tokens in their place gets a pass of the student over them."""

    trainer = build(tmp_path, clone(student), clone(teacher), "opd")
    write = trainer._generate_single_turn

    def edited(*given, **named):
        written, logps = write(*given, **named)
        return [[*row[:2], 9, *row[3:]] for row in written], logps

    trainer._generate_single_turn = edited
    trainer.train()
    assert passes == [8]
    (batch,) = trainer._buffered_inputs
    found = tiny.score_student(trainer, batch.rollouts)
    assert found.rollout_logp.isfinite().all() and torch.equal(found.rollout_logp, found.trainer_logp)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_a_rotary_embedding_that_depends_on_the_batch_gets_a_pass(tmp_path, teacher, kind):
    model = tiny.llama(seed=1)
    assert not rotates_by_length(model)
    model.config.rope_parameters = {"rope_type": kind, "rope_theta": 10000.0, "factor": 2.0}
    assert rotates_by_length(model)
    trainer = build(tmp_path, tiny.llama(seed=1), clone(teacher), "opd")
    trainer.model.config.rope_parameters = model.config.rope_parameters
    assert not notes_suffice(trainer) and not reads_by_length(trainer)


def test_layers_in_half_precision_behind_a_float32_embedding_get_a_pass(tmp_path, student, teacher):
    trainer = build(tmp_path, clone(student), clone(teacher), "opd")
    assert notes_suffice(trainer)
    trainer.model.model.layers[1].mlp.to(torch.bfloat16)
    assert trainer.model.dtype == torch.float32 and not notes_suffice(trainer)


def test_at_a_later_update_a_logged_prefix_has_no_log_probability_of_the_sampler(tmp_path, student, teacher):
    settings = {"max_steps": 2, "num_iterations": 2, "rollout_log_steps": 1}
    run(tmp_path, student, teacher, "tropd", **GUIDED, **settings)
    known = []
    for file in sorted((tmp_path / "rollouts").glob("*.jsonl")):
        tokens = [token for line in file.read_text().splitlines() for token in json.loads(line)["tokens"]]
        prefix = [token for token in tokens if token["region"] == "guidance"]
        known.append({token["rollout_logp"] is not None for token in prefix})
        assert all((token["log_ratio"] is None) == (token["rollout_logp"] is None) for token in prefix)
    assert known == [{True}, {False}]


def test_prefixes_that_are_read_for_the_log_alone_make_no_metric(tmp_path, student, teacher):
    settings = {"max_steps": 2, "guidance_beta": 0.0, "rollout_log_steps": 2}
    logs = run(tmp_path, student, teacher, "tropd", **GUIDED, **settings).logs
    assert not any("guidance/nll" in entry for entry in logs)


def test_half_precision_takes_them_if_it_is_told_to(tmp_path, student, teacher, passes):
    trainer = build(tmp_path, clone(student), clone(teacher), "opd", bf16=True, rescore_rollouts=False)
    trainer.train()
    assert passes == []
    assert 1e-4 < trainer.state.log_history[0]["sampler/logp_gap"] < 0.3


def test_a_logged_prefix_has_the_log_probability_of_the_pass_that_reads_it(tmp_path, student, teacher):
    tokens = {}
    for name, rescore in (("notes", None), ("pass", True)):
        run(tmp_path / name, student, teacher, "tropd", **GUIDED, rescore_rollouts=rescore, rollout_log_steps=1)
        (file,) = (tmp_path / name / "rollouts").glob("*.jsonl")
        records = [json.loads(line) for line in file.read_text().splitlines()]
        tokens[name] = [token for record in records for token in record["tokens"]]
    prefix = [n for n, token in enumerate(tokens["notes"]) if token["region"] == "guidance"]
    assert len(prefix) > 3
    for n in prefix:
        for value in ("rollout_logp", "log_ratio"):
            assert tokens["notes"][n][value] == pytest.approx(tokens["pass"][n][value], abs=5e-5)


def test_the_setting_is_refused_where_no_sampler_of_ours_notes_anything(tmp_path):
    with pytest.raises(ValueError, match=r"rescore_rollouts is False, but .* \(addressed_sampling is False\)"):
        config(tmp_path, rescore_rollouts=False, addressed_sampling=False)


def test_the_hosts_own_pass_over_several_updates_is_not_made(tmp_path, student, teacher):
    """TRL would compute log-probabilities that only its own loss reads."""
    trainer = build(tmp_path, clone(student), clone(teacher), "opd", script=tiny.replay(tiny.recorded(8)))
    trainer.rollout_stage.begin([])
    calls = []
    trainer.model.register_forward_pre_hook(lambda module, args: calls.append(1))
    trainer.args.steps_per_generation, trainer.num_iterations = 1, 2
    trainer.model.train()
    tiny.roll_out(trainer, [{"prompt": prompt} for prompt in tiny.PROMPTS for _ in range(2)])
    assert calls == []


PATHS = {
    "our loop": {},
    "our loop, read again": {"rescore_rollouts": True},
    "our loop in half precision": {"bf16": True},
    "Transformers' loop": {},
    "Transformers' loop in half precision": {"bf16": True},
    "PyTorch's generator": {"addressed_sampling": False},
    "greedy": {},
    "guided": GUIDED,
    "endings that are one": {"ending_ids": [EOS, 20, 21]},
    "endings that are one, by Transformers": {"ending_ids": [EOS, 20, 21], "addressed_sampling": False},
}


@pytest.mark.parametrize("path", PATHS)
def test_the_gap_between_sampler_and_trainer_is_known_on_every_path(tmp_path, monkeypatch, student, teacher, path):
    method = "tropd" if path == "guided" else "opd"
    options = {"eval_dataset": tiny.same_dataset()}
    trainer = build(tmp_path, clone(student), clone(teacher), method, **PATHS[path], trainer_options=options)
    if path.startswith("Transformers"):
        monkeypatch.setattr("tropd.rollout.engine.noise.why_plain", lambda *_: "the test")
    if path == "greedy":
        trainer.generation_config.do_sample = trainer.generation_kwargs["do_sample"] = False
    trainer.train()
    gaps = [trainer.state.log_history[0]["sampler/logp_gap"], trainer.evaluate()["eval_sampler/logp_gap"]]
    assert all(0 < gap < (0.3 if "half" in path else 3e-5) for gap in gaps), gaps


@pytest.mark.parametrize("layers", ["float32", "bfloat16"])
def test_rounding_of_half_precision_is_no_other_model(tmp_path, layers):
    """Under autocast that accelerate switches on inside the forward, or in the layers behind a float32 embedding."""
    student = tiny.llama(seed=1)
    with torch.no_grad():
        student.lm_head.weight.mul_(20)
    trainer = build(tmp_path, student, tiny.llama(seed=2), "opd", bf16=True)
    trainer.model.model.layers.to(getattr(torch, layers))
    trainer.train()
    assert trainer.state.log_history[0]["sampler/logp_gap"] < 10


ADDRESSED = {"ours": None, "Transformers'": None, "PyTorch's generator": False}


@pytest.mark.parametrize("loop", ADDRESSED)
def test_the_gap_tells_that_the_sampler_is_another_model(tmp_path, monkeypatch, student, teacher, loop):
    trainer = build(tmp_path, clone(student), clone(teacher), "opd", addressed_sampling=ADDRESSED[loop])
    if loop == "Transformers'":
        monkeypatch.setattr("tropd.rollout.engine.noise.why_plain", lambda *_: "the test")
    score = step.score_student

    def moved(*args, **settings):
        scores = score(*args, **settings)
        return replace(scores, trainer_logp=scores.trainer_logp - 0.5)

    monkeypatch.setattr(step, "score_student", moved)
    trainer.rollout_stage.trusts_sampler = False
    trainer.train()
    assert trainer.state.log_history[0]["sampler/logp_gap"] == pytest.approx(0.5, abs=1e-4)
