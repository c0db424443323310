"""Guidance over turns: the teacher's turns go through the host's own tool loop, and are marked as what they are."""

import json
import math
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from transformers.utils import get_json_schema

import reference
from served_fake import FakeServer, of_model
from training import agents
from training.agents import ANSWER, ASK, CALL, build, ids, logged, rollouts, text
from training.tiny import Recorder, roll_out
from tropd.objective.randomness import addressed_uniforms
from tropd.training.turn_guidance import TURN_STREAM

THINK = "<think>\n\n</think>\n\n"
"""Qwen's template writes it before each recorded turn."""
FULL = {"guidance_schedule": "constant", "guidance_beta": 0.1}
SECOND = CALL.replace("12+3", "15+1")


def said(text):
    call = text.removesuffix("<|im_end|>")
    if "<tool_call>" not in call:
        return {"role": "assistant", "content": call}
    expression = call.split('"expression": "')[1].split('"')[0]
    function = {"name": "calculator", "arguments": {"expression": expression}}
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}


def reply(content):
    return {"role": "tool", "name": "calculator", "content": content}


EPISODE = [said(CALL), reply("15"), said(SECOND), reply("16"), said("It is 16.<|im_end|>")]
RECORDED = [{"prompt": ASK, "teacher_response": EPISODE}] * 4


def by_teacher(rollout):
    marked = zip(rollout.response, rollout.by_teacher, strict=True)
    return text([token for token, mark in marked if mark]).replace(THINK, "")


def by_student(rollout):
    others = zip(rollout.response, rollout.by_teacher, rollout.external, strict=True)
    return text([token for token, taught, told in others if not taught and not told])


def answers(context):
    return ANSWER


# ---------------------------------------------------------------------- recorded episodes


@pytest.mark.parametrize(("share", "turns"), [(0.34, 1), (0.67, 2), (1.0, 2)])
def test_a_share_of_the_recorded_turns_is_the_teachers(tmp_path, monkeypatch, share, turns):
    monkeypatch.setattr("tropd.training.step.guidance_fraction", lambda *_: share)
    trainer = build(tmp_path, answers, "tropd", rows=RECORDED, guidance_length="share", **FULL)
    for rollout in rollouts(trainer):
        assert by_teacher(rollout) == "".join([CALL, SECOND][:turns])
        assert by_student(rollout) == ANSWER and rollout.student_length == len(ids(ANSWER))
    length = len(ids("".join([THINK + CALL, THINK + SECOND][:turns])))
    assert trainer._buffered_inputs[0].signals.guidance_mask.sum() == 4 * length
    assert logged(trainer)["guidance/prefix_length"] == length
    assert logged(trainer)["tools/call_frequency"] == turns


def test_a_cap_counts_what_the_teacher_writes_and_not_what_tools_say(tmp_path, monkeypatch):
    """One token more than the first call has begins the second turn, and so it is the teacher's."""
    for more, expected in ((0, CALL), (1, CALL + SECOND)):
        budget = (len(ids(THINK + CALL)) + more) / 400
        monkeypatch.setattr("tropd.training.step.guidance_fraction", lambda *_, b=budget: b)
        trainer = build(tmp_path / str(more), answers, "tropd", rows=RECORDED, guidance_length="cap", **FULL)
        assert {by_teacher(rollout) for rollout in rollouts(trainer)} == {expected}


def test_tokens_go_over_turns_and_the_student_goes_on_within_one(tmp_path, monkeypatch):
    monkeypatch.setattr("tropd.training.step.guidance_fraction", lambda *_: (len(ids(THINK + CALL + THINK)) + 20) / 400)
    trainer = build(
        tmp_path,
        lambda context: text(ids(SECOND)[20:]) if "<tool_response>\n16" not in text(context) else ANSWER,
        "tropd",
        rows=RECORDED,
        guidance_length="cap",
        guidance_unit="tokens",
        **FULL,
    )
    for rollout in rollouts(trainer):
        assert by_teacher(rollout) == CALL + text(ids(SECOND)[:20])
        assert by_student(rollout) == text(ids(SECOND)[20:]) + ANSWER


def test_one_turn_is_todays_prefix_bit_for_bit(tmp_path):
    """A recorded answer, and one that the teacher writes: with a tool that nobody calls, and without."""
    for number, rows in enumerate(
        ([{"prompt": ASK, "teacher_response": "The answer is 15."}] * 4, [{"prompt": ASK}] * 4)
    ):
        seen = []
        for tools in ([agents.calculator], []):
            recorder = Recorder()
            settings = {"tools": tools or None, "max_completion_length": 24, "guidance_length": "cap"}
            if tools:
                settings["guidance_unit"] = "tokens"
            told = rows if tools else [row | {"tools": [get_json_schema(agents.calculator)]} for row in rows]
            trainer = build(tmp_path / f"{number}{bool(tools)}", None, "tropd", rows=told, **settings, **FULL)
            trainer.add_callback(recorder)
            found = rollouts(trainer)
            signals = trainer._buffered_inputs[0].signals
            seen.append((found, signals, recorder.steps[0].gradients))
        (ours, mine, gradients), (theirs, yours, expected) = seen
        assert [r.response for r in ours] == [r.response for r in theirs]
        assert [r.prefix_length for r in ours] == [r.prefix_length for r in theirs] and ours[0].prefix_length > 5
        for name in ("rollout_logp", "teacher_logp", "trust_weight", "outlier_weight", "guidance_mask"):
            assert torch.equal(getattr(mine, name), getattr(yours, name)), name
        assert all(torch.equal(gradients[name], expected[name]) for name in expected)


@pytest.mark.parametrize("pattern", ["prefix", "mixed", "trust"])
@pytest.mark.parametrize("options", [{}, {"environment_factory": agents.Store}], ids=["tools", "environment"])
def test_without_a_share_it_is_unguided_bit_for_bit(tmp_path, monkeypatch, pattern, options):
    seen = []
    for name, settings in (("a", FULL | {"guidance_pattern": pattern}), ("b", {"guidance_schedule": "none"})):
        monkeypatch.setattr("tropd.training.step.guidance_fraction", lambda *_: 0.0)
        recorder = Recorder()
        trainer = build(tmp_path / name, None, "tropd", rows=RECORDED, max_completion_length=60, **settings, **options)
        trainer.add_callback(recorder)
        seen.append(([r.response for r in rollouts(trainer)], recorder.steps[0].weights))
    assert seen[0][0] == seen[1][0]
    assert all(torch.equal(value, seen[1][1][name]) for name, value in seen[0][1].items())


def test_the_rollout_log_says_who_said_what(tmp_path, monkeypatch):
    monkeypatch.setattr("tropd.training.step.guidance_fraction", lambda *_: 0.34)
    settings = {"guidance_length": "share", "rollout_log_steps": 1}
    build(tmp_path, answers, "tropd", rows=RECORDED, **settings, **FULL).train()
    record = json.loads((tmp_path / "rollouts" / "step-000001.jsonl").read_text().splitlines()[0])
    assert [part["author"] for part in record["episode"]] == ["teacher", "tool", "student"]
    starts, texts = [part["at"] for part in record["episode"]], [token["text"] for token in record["tokens"]]
    assert starts[0] == 0 and starts[1] == starts[2], "a tool's words are no logged tokens"
    assert "".join(texts[starts[2] :]) == ANSWER
    assert "<tool_response>\n15" in record["episode"][1]["text"] and record["episode"][2]["text"] == ANSWER


# ---------------------------------------------------------------------- environments


@pytest.mark.parametrize("is_sharded", [False, True])
def test_a_recording_that_the_environment_contradicts_is_left_and_counted(tmp_path, monkeypatch, is_sharded):
    """It answers 15, then 16: the recording says that it first said 99. A sharded teacher cannot write what follows."""
    monkeypatch.setattr("tropd.training.turn_guidance.shards_teacher", lambda _: is_sharded)
    agents.Store.made.clear()
    episode = [said(CALL), reply("99"), said(SECOND), reply("16"), said("It is 16.<|im_end|>")]
    trainer = build(
        tmp_path,
        answers,
        "tropd",
        rows=[{"prompt": ASK, "teacher_response": episode}] * 4,
        environment_factory=agents.Store,
        guidance_length="share",
        **FULL,
    )
    asked = []
    trainer.teacher.write = lambda contexts, **_: [asked.append(ids("I am done.")) or asked[-1] for _ in contexts]
    for rollout in rollouts(trainer):
        assert by_teacher(rollout) == CALL and by_student(rollout) == ANSWER and rollout.stale
    assert bool(asked) != is_sharded
    assert [store.calls for store in agents.Store.made] == [1] * 4 and logged(trainer)["guidance/stale_share"] == 1


def test_a_teacher_that_writes_acts_in_each_rows_environment_until_it_would_end(tmp_path):
    agents.Store.made.clear()
    trainer = build(tmp_path, answers, "tropd", environment_factory=agents.Store, guidance_length="cap", **FULL)
    asked = []

    def write(contexts, **_):
        asked.extend(contexts)
        calls = [CALL if text(c).count("<tool_response>\n") < 2 else "Done." for c in contexts]
        return [ids(call)[:-1] if call == CALL else ids(call) for call in calls]

    trainer.teacher.write = write
    for rollout in rollouts(trainer):
        assert by_teacher(rollout) == CALL + CALL and by_student(rollout) == ANSWER
    assert [store.calls for store in agents.Store.made] == [2] * 4
    assert len(asked) == 3, "rollouts of a prompt share a turn as long as they have read the same"
    assert logged(trainer)["guidance/turns"] == 2 and logged(trainer)["agent/turns"] == 3


def test_mixed_turns_are_drawn_for_each_row_with_the_schedules_probability(tmp_path, monkeypatch):
    monkeypatch.setattr("tropd.training.step.guidance_fraction", lambda *_: 0.5)

    def play(context):
        return ANSWER if agents.reads(context).count("<tool_response>") >= 4 else SECOND

    rows = [{"prompt": ASK}] * 8
    settings = {"per_device_train_batch_size": 32, "max_completion_length": 900, "guidance_pattern": "mixed"}
    trainer = build(tmp_path, play, "tropd", rows=rows, **settings, **FULL)
    trainer.teacher.write = lambda contexts, **_: [ids(CALL)[:-1] for _ in contexts]
    found = rollouts(trainer)
    taught = [[rollout.by_teacher[turn.start] for turn in rollout.turns[:4]] for rollout in found]
    assert len({tuple(row) for row in taught}) > 8, "each row draws for itself"
    assert abs(sum(map(sum, taught)) / (4 * 32) - 0.5) < 0.15
    again = build(tmp_path / "again", play, "tropd", rows=rows, **settings, **FULL)
    again.teacher.write = trainer.teacher.write
    assert [r.response for r in rollouts(again)] == [r.response for r in found]


@pytest.mark.parametrize("pattern", ["prefix", "mixed"])
def test_a_teacher_is_not_asked_for_a_turn_without_room(tmp_path, monkeypatch, pattern):
    """A tool's reply may end with the last token that a response may have."""
    monkeypatch.setattr("tropd.training.step.guidance_fraction", lambda *_: 1.0)
    rooms = []

    def write(contexts, *, max_new_tokens, **_):
        rooms.append(max_new_tokens)
        return [ids(CALL)[:-1] for _ in contexts]

    def found(folder, length):
        settings = {"max_completion_length": length, "guidance_pattern": pattern, "guidance_length": "cap"}
        trainer = build(tmp_path / folder, answers, "tropd", **settings, **FULL)
        trainer.teacher.write = write
        return rollouts(trainer)[0]

    full = found("roomy", 900).turns[1].start
    rooms.clear()
    cut = found("full", full)
    assert by_teacher(cut) == CALL and len(cut.response) == full and not cut.ended
    assert rooms and min(rooms) > 0


def plain_logps(model, rollout):
    """log π of each response token, of an ordinary forward pass over one row."""
    tokens = torch.tensor([[*rollout.prompt_ids, *rollout.response]])
    with torch.no_grad():
        logps = model(tokens).logits[0, len(rollout.prompt_ids) - 1 : -1].log_softmax(-1)
    return logps.gather(1, torch.tensor(rollout.response)[:, None])[:, 0].tolist()


def test_a_turn_is_taken_over_with_what_the_twin_says_that_trust_lacks(tmp_path, monkeypatch):
    """Each turn's author against addressed draws and a plain pass of both models; and their number as expected."""
    monkeypatch.setattr("tropd.training.step.guidance_fraction", lambda *_: 0.8)

    def play(context):
        return ANSWER if agents.reads(context).count("<tool_response>") >= 3 else SECOND

    rows = [{"prompt": ASK}] * 8
    settings = {"per_device_train_batch_size": 32, "max_completion_length": 900, "guidance_pattern": "trust"}
    trainer = build(tmp_path, play, "tropd", rows=rows, **settings, **FULL)
    trainer.teacher.write = lambda contexts, **_: [ids(CALL)[:-1] for _ in contexts]
    found, models = rollouts(trainer), (agents.qwen(1), agents.qwen(2))
    taken, chances = [], []
    for rollout in found:
        student, teacher = (plain_logps(model, rollout) for model in models)
        accepted = [
            [1.0 if rollout.by_teacher[i] else reference.trust_probability(teacher[i] - student[i]) for i in turn]
            for turn in rollout.turns
        ]
        for j, (turn, chance) in enumerate(
            zip(rollout.turns[:3], reference.takeover_probabilities(accepted, 0.8), strict=False)
        ):
            draw = addressed_uniforms(trainer.args.seed, 0, [rollout.row], j + 1, TURN_STREAM)[0, -1]
            assert rollout.by_teacher[turn.start] == bool(draw < chance), (rollout.row, j, chance)
            taken.append(rollout.by_teacher[turn.start])
            chances.append(chance)
    assert not any(taken[::3]) and 0.2 < sum(chances) / 64 < 0.7, "nothing precedes the first turn"
    assert abs(sum(taken) - sum(chances)) < 3 * math.sqrt(sum(p * (1 - p) for p in chances))


def test_a_student_that_is_its_teacher_keeps_all_turns(tmp_path):
    settings = {"student": agents.qwen(2), "guidance_pattern": "trust"}
    trainer = build(tmp_path, agents.calls_then_answers, "tropd", **settings, **FULL)
    trainer.teacher.write = lambda contexts, **_: pytest.fail("the teacher took a turn over")
    assert {by_student(rollout) for rollout in rollouts(trainer)} == {CALL + ANSWER}


# ---------------------------------------------------------------------- where the models are elsewhere


def test_a_served_teacher_takes_the_same_turns_over(tmp_path):
    """It scores what was written so far, and writes the turns that it takes."""
    seen = []
    with FakeServer(
        of_model(agents.qwen(2)),
        vocab_size=len(agents.tokenizer()),
        most_topk=64,
        max_model_len=2048,
        tokenize=ids,
        writer=lambda body: ids(CALL)[: body["max_tokens"]],
    ) as server:
        for teacher in (agents.qwen(2), server.url):
            settings = {"teacher": teacher, "guidance_pattern": "trust", "num_generations": 4}
            trainer = build(tmp_path / str(len(seen)), agents.calls_then_answers, "tropd", **settings, **FULL)
            if not seen:
                trainer.teacher.write = lambda contexts, **_: [ids(CALL)[:-1] for _ in contexts]
            seen.append([(rollout.response, list(rollout.by_teacher)) for rollout in rollouts(trainer)])
    assert seen[0] == seen[1] and any(any(marks) for _, marks in seen[0])


def test_vllm_is_asked_for_the_turns_that_are_the_students_alone(tmp_path, monkeypatch):
    """Each with what its episode has left; of the teacher's tokens the engine has said nothing."""
    monkeypatch.setattr("tropd.training.step.guidance_fraction", lambda *_: 0.34)
    trainer = build(tmp_path, None, "tropd", rows=RECORDED, guidance_length="share", **FULL)
    trainer.script = lambda contexts: ([ids(ANSWER) for _ in contexts], [[-0.5] * len(ids(ANSWER)) for _ in contexts])
    asked = []

    class Engine:
        llm = SimpleNamespace(llm_engine=SimpleNamespace(model_config=SimpleNamespace(max_model_len=2048)))

        @contextmanager
        def asking_by_row(self, rows):
            asked.append(rows)
            yield

    trainer.use_vllm, trainer.vllm_generation = True, Engine()
    trainer.state.max_steps = 4
    trainer.model.train()
    found = roll_out(trainer, [dict(row) for row in RECORDED])
    (rows,) = asked
    for row, rollout in zip(rows, found, strict=True):
        own = len(ids(ANSWER))
        assert by_teacher(rollout) == CALL and by_student(rollout) == ANSWER
        assert row.max_tokens == 400 - (len(rollout.response) - own)
        assert rollout.sampler_logps[-own:] == [-0.5] * own
        said = zip(rollout.sampler_logps, rollout.by_teacher, strict=True)
        assert all(math.isnan(logp) for logp, taught in said if taught)
    assert len({row.seed for row in rows}) == 4


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("method", "settings", "what"),
    [
        ("opd", {"guidance_unit": "turns"}, "guidance_unit is 'turns', but method 'opd' is not guided"),
        ("tropd", {"guidance_pattern": "mixed", "guidance_unit": "tokens"}, "which draws who writes a turn"),
        ("tropd", {"guidance_pattern": "trust", "guidance_unit": "tokens"}, "which draws who writes a turn"),
        ("tropd", {"guidance_unit": "turn"}, "guidance_unit is 'turn'"),
        ("tropd", {"guidance_pattern": "mixed", "tools": None, "rows": [{"prompt": "a"}] * 4}, "one turn"),
    ],
)
def test_settings_without_turns_are_refused(tmp_path, method, settings, what):
    with pytest.raises(ValueError, match=what):
        build(tmp_path, answers, method, **settings)


@pytest.mark.parametrize("pattern", ["trust", "mixed"])
def test_turns_are_refused_that_sharded_weights_cannot_give(tmp_path, monkeypatch, pattern):
    monkeypatch.setattr("tropd.training.turn_guidance.shards_teacher", lambda _: True)
    with pytest.raises(ValueError, match=rf"guidance_pattern is '{pattern}'.*sharded.*guidance_pattern: prefix"):
        build(tmp_path, answers, "tropd", guidance_pattern=pattern, **FULL)


def test_a_share_of_turns_that_nobody_recorded_is_refused(tmp_path):
    trainer = build(tmp_path, answers, "tropd", guidance_length="share", **FULL)
    with pytest.raises(ValueError, match="no teacher_response whose turns could be counted"):
        trainer.train()


def test_an_episode_as_text_is_refused(tmp_path):
    rows = [{"prompt": ASK, "teacher_response": CALL + "\n<|im_start|>user\n15<|im_end|>"}] * 4
    trainer = build(tmp_path, answers, "tropd", rows=rows, guidance_length="cap", **FULL)
    with pytest.raises(ValueError, match="continues after its first ending, so it is an episode of several turns"):
        trainer.train()
