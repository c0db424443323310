"""Teacher prefixes through the trainer: what is spliced, how long, and what it teaches."""

from dataclasses import replace

import pytest
import torch

from training import tiny
from training.tiny import (
    EOS,
    build,
    clone,
    gradients_of,
    groups,
    ids,
    largest,
    largest_difference,
    plain_logp,
    recorded,
    replay,
    run,
)
from tropd import METHODS

RESPONSES = ("xyz+xy", "ghk=12", "1+2=3", "mno")
ROWS = [{"prompt": p, "teacher_response": r} for p, r in zip(tiny.PROMPTS, RESPONSES, strict=True)]
FULL = {"guidance_schedule": "constant"}  # α = 1 in every step


def rollouts_of(trainer):
    """The rollouts of the batch that was built last, row after row."""
    return [rollout for batch in trainer._buffered_inputs for rollout in batch.rollouts]


@pytest.fixture
def guided(tmp_path, student, teacher):
    def train(rows=ROWS, script=None, method="tropd", **settings):
        return run(tmp_path, student, teacher, method, rows=rows, script=script or replay(recorded(8)), **settings)

    return train


def test_the_rollouts_of_a_prompt_share_one_prefix_and_the_sampler_continues_it(guided):
    trainer = guided(**FULL).trainer
    starts = [ids(response)[:-1] for response in RESPONSES[:2] for _ in range(4)]
    assert [r.response[: r.prefix_length] for r in rollouts_of(trainer)] == starts
    assert trainer.contexts_seen == [[[*p, *start] for p, start in zip(groups(), starts, strict=True)]]


def test_what_the_student_wrote_follows_the_prefix_within_the_length(guided):
    for rollout, written in zip(rollouts_of(guided(**FULL).trainer), recorded(8), strict=True):
        room = 10 - rollout.prefix_length
        assert rollout.response[rollout.prefix_length :] == written[:room]
        assert rollout.student_length == len(written[:room])
        assert rollout.ended == (written[:room][-1] == EOS)


def test_text_messages_and_ids_give_one_prefix(tmp_path, student, teacher):
    def prefixes(value):
        rows = [{"prompt": [{"role": "user", "content": "ab"}], "teacher_response": value}] * 2
        done = run(tmp_path, student, teacher, "tropd", rows=rows, script=replay(recorded(8)), **FULL)
        return [r.response[: r.prefix_length] for r in rollouts_of(done.trainer)]

    text = prefixes("xyz+xy")
    assert text == [ids("xyz+x")] * 8
    assert prefixes([{"role": "assistant", "content": "xyz+xy"}]) == text
    assert prefixes([*ids("xyz+xy"), EOS]) == text


def test_ids_are_spliced_and_never_tokenised_again(guided):
    apart = [*ids("a"), *ids("b"), *ids("a"), *ids("b"), *ids("x")]  # its text would come back as two `ab`
    assert ids(tiny.tokenizer().decode(apart)) != apart
    rows = [{"prompt": prompt, "teacher_response": apart} for prompt in tiny.PROMPTS]
    for rollout in rollouts_of(guided(rows, **FULL).trainer):
        assert rollout.response[: rollout.prefix_length] == apart[:-1]


def test_a_minimum_tail_of_response_and_budget_is_left_to_the_student(guided):
    rows = [{"prompt": "ab=", "teacher_response": "xyzxyz"}, {"prompt": "g=", "teacher_response": "1234567890123"}]
    lengths = [r.prefix_length for r in rollouts_of(guided(rows, guidance_min_tail=3, **FULL).trainer)]
    assert lengths == [3] * 4 + [7] * 4  # 6 − 3 of the response; 10 − 3 of the budget


def test_transformers_own_sampler_stays_within_the_length_as_well(tmp_path, student, teacher):
    rows = [{"prompt": "ab=", "teacher_response": "xyz+x"}, {"prompt": "g=", "teacher_response": "xyz+xy"}]
    trainer = run(tmp_path, student, teacher, "tropd", rows=rows, **FULL).trainer
    rollouts = rollouts_of(trainer)
    assert all(len(r.response) <= 10 and r.student_length >= 1 for r in rollouts)
    assert any(r.student_length > 1 for r in rollouts)
    assert trainer.budgets_seen == [10 - 4], "nothing is sampled that the shortest prefix leaves no room for"
    assert trainer.generation_config.max_new_tokens == 10, "the budget is put back"


def test_rows_without_a_usable_response_start_from_nothing(guided):
    rows = [{"prompt": "ab=", "teacher_response": "x"}, {"prompt": "g=", "teacher_response": "xyzxyz"}]
    assert [r.prefix_length for r in rollouts_of(guided(rows, **FULL).trainer)] == [0] * 4 + [5] * 4


@pytest.mark.parametrize(("schedule", "expected"), [("linear", [5, 4, 3, 1]), ("cosine", [5, 5, 3, 0])])
def test_the_prefix_is_annealed_away(guided, schedule, expected):
    # T = 4, L = 6: linear α = 1, ¾, ½, ¼ and cosine α = 1, .854, .5, .146 of six tokens, at most five.
    rows = [{"prompt": p, "teacher_response": "xyz+xy"} for p in tiny.PROMPTS]
    done = guided(rows, max_steps=4, guidance_schedule=schedule, guidance_length="share")
    assert [entry["guidance/prefix_length"] for entry in done.logs] == expected
    assert [entry["regions/num_guidance"] for entry in done.logs] == [8 * length for length in expected]


def test_training_ends_without_any_prefix(guided):
    done = guided([{"prompt": p, "teacher_response": "1234567890123"} for p in tiny.PROMPTS], max_steps=8)
    lengths = [entry["guidance/prefix_length"] for entry in done.logs]
    assert lengths[0] > 4 and lengths[-1] == 0
    assert lengths == sorted(lengths, reverse=True)


def test_without_the_column_the_teacher_writes_once_for_each_prompt(tmp_path, student, teacher):
    trainer = build(tmp_path, clone(student), clone(teacher), script=replay(recorded(8)), **FULL)
    asked = []

    def write(contexts, **settings):
        asked.append((contexts, settings["max_new_tokens"]))
        return [[40 + number] * 6 for number in range(len(contexts))]

    trainer.teacher.write = write
    trainer.train()
    assert asked == [([ids(prompt) for prompt in tiny.PROMPTS[:2]], 10)]
    assert [r.response[: r.prefix_length] for r in rollouts_of(trainer)] == [[40] * 5] * 4 + [[41] * 5] * 4


def test_the_teacher_writes_only_where_the_column_is_empty(tmp_path, student, teacher):
    rows = [{"prompt": "ab=", "teacher_response": None}, {"prompt": "g=", "teacher_response": "xyz"}]
    trainer = build(tmp_path, clone(student), clone(teacher), rows=rows, script=replay(recorded(8)), **FULL)
    trainer.teacher.write = lambda contexts, **_: [[44, 45, 46] for _ in contexts]
    trainer.train()
    assert [r.response[: r.prefix_length] for r in rollouts_of(trainer)] == [[44, 45]] * 4 + [ids("xy")] * 4


def test_the_teacher_writes_in_its_own_context(tmp_path, student, teacher):
    rows = [{"prompt": p, "teacher_prompt": f"hint;{p}"} for p in tiny.PROMPTS]
    trainer = build(tmp_path, clone(student), clone(teacher), rows=rows, script=replay(recorded(8)), **FULL)
    contexts = []
    trainer.teacher.write = lambda given, **_: contexts.extend(given) or [[44, 45]] * len(given)
    trainer.train()
    assert contexts == [ids(f"hint;{p}") for p in tiny.PROMPTS[:2]]


def test_a_real_teacher_writes_a_real_prefix(tmp_path, student, teacher):
    rollouts = rollouts_of(run(tmp_path, student, teacher, "tropd", **FULL).trainer)
    starts = [r.response[: r.prefix_length] for r in rollouts]
    assert starts[:4] == [starts[0]] * 4 and starts[4:] == [starts[4]] * 4
    assert any(starts) and all(EOS not in start for start in starts)


def test_methods_without_guidance_ignore_the_column_and_the_teacher_stays_silent(tmp_path, student, teacher):
    trainer = build(tmp_path, clone(student), clone(teacher), "opd", rows=ROWS, script=replay(recorded(8)))
    trainer.teacher.write = None
    trainer.train()
    assert trainer.contexts_seen == [groups()]
    assert [r.response for r in rollouts_of(trainer)] == recorded(8)


def test_prefix_tokens_have_the_gradient_of_their_likelihood_and_nothing_else(guided, student, tmp_path):
    """With the student as its own teacher every K1 term is zero: −β ∇log π_S is what is left."""
    settings = {"gate": "hard", "outlier_tau": -1e9, "guidance_beta": 0.25, **FULL}
    done = run(tmp_path, student, student, "tropd", rows=ROWS, script=replay(recorded(8)), **settings)
    model = clone(student).double()
    rollouts = rollouts_of(done.trainer)
    prefix_logp = [plain_logp(model, r.prompt_ids, r.response[: r.prefix_length]).sum() for r in rollouts]
    total = sum(len(r.response) for r in rollouts)
    expected = gradients_of(model, -0.25 * torch.stack(prefix_logp).sum() / total)
    assert largest(expected) > 0.01
    assert largest_difference(done.gradients, expected) < 1e-5 * largest(expected)


def test_the_prefix_term_is_proportional_to_beta(tmp_path, student):
    def gradient(beta):
        settings = {"gate": "hard", "outlier_tau": -1e9, "guidance_beta": beta, **FULL}
        return run(tmp_path, student, student, "tropd", rows=ROWS, script=replay(recorded(8)), **settings).gradients

    once, thrice = gradient(0.1), gradient(0.3)
    assert largest_difference({name: 3 * g for name, g in once.items()}, thrice) < 1e-5 * largest(thrice)
    assert largest(gradient(0.0)) < 1e-6


def test_the_samplers_log_probabilities_are_used_on_its_own_tokens_alone(guided):
    """A sampler that returns log-probabilities, as vLLM does: absent on the prefix, kept on the continuation."""
    written = recorded(8)
    done = guided(script=lambda contexts: (written, [[-1.5] * len(row) for row in written]), **FULL)
    for batch in done.trainer._buffered_inputs:
        start = 0
        for rollout in batch.rollouts:
            logps = torch.tensor(rollout.sampler_logps)
            assert logps[: rollout.prefix_length].isnan().all()
            assert (logps[rollout.prefix_length :] == -1.5).all()
            used = batch.signals.rollout_logp[start : start + len(rollout.response)]
            assert (used[rollout.prefix_length :] == -1.5).all()
            assert (used[: rollout.prefix_length] != -1.5).all()
            start += len(rollout.response)
    assert done.logs[0]["sampler/logp_gap"] > 0.1


def test_guidance_and_a_rollout_func_are_refused_together(tmp_path, student, teacher):
    options = {"trainer_options": {"rollout_func": lambda prompts, trainer: {}}}
    with pytest.raises(ValueError, match="which a rollout_func does not receive"):
        build(tmp_path, clone(student), clone(teacher), "tropd", **options)


def test_a_second_stage_cuts_prefixes_by_its_own_reading(tmp_path, student, teacher):
    """`cap`: min(⌊½ · 12⌋, 4 − 1); from the switch on `share`: ⌊½ · 4⌋."""
    rows = [{"prompt": "ab=", "teacher_response": [5, 6, 7, 8]}] * 4
    trainer = build(tmp_path, clone(student), clone(teacher), "tropd", rows=rows, max_completion_length=12)
    first = replace(METHODS["tropd"], guidance_schedule="constant")
    trainer.method = replace(first, second_stage=replace(first, guidance_length="share"), switch_at=0.5)
    trainer.model.train()
    trainer.state.max_steps, lengths = 2, []
    for trainer.state.global_step in (0, 1):
        prefixes = trainer.rollout_stage.find_prefixes(rows, 0, 0.5, trainer.step_setup().method)
        lengths.append({len(prefix.ids) for prefix in prefixes})
    assert lengths == [{3}, {2}]
