"""Several teachers in one run: each row meets its own, splits change nothing, and every record names them."""

import json
import logging
from collections.abc import Sequence

import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig

from training import tiny
from training.tiny import EOS, Recorder, build, clone, ids, largest, largest_difference, recorded, replay
from tropd.objective.loss import FullVocabularyTerm, SeveralTerms, TopKTerm
from tropd.teacher.adapter_base import BaseTeacher
from tropd.training.guards.errors import TeacherFailed
from tropd.training.logging.metrics import metric_names

METHODS = ["opd", "tropd", "eopd", "fkl", "jsd", "gkd", "reopold", "tropd_support", "vopd"]
OWNERS = {"ab=": "math", "cde+f=": "code", "g=": "math", "hi+jk+l=": "code"}
ROWS = [{"prompt": prompt, "teacher": name} for prompt, name in OWNERS.items()]
OWN_TOKEN = {"math": 20, "code": 30, "prose": 40}
MORE = {f"{first}+{second}=": name for first in "abcd" for second, name in zip("efg", OWN_TOKEN, strict=True)}


def certain(token: int, width: int = 16, rows: int = tiny.VOCABULARY_ROWS):
    """A teacher that gives `token` all but 10⁻⁵ of its mass, whatever it reads."""
    model = tiny.llama(0, rows=rows, width=width)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.fill_(1.0)
        model.lm_head.weight.zero_()
        model.lm_head.weight[token] = 16.0 / width
    return model


def pair():
    """Two teachers of different kinds, widths and padded vocabularies."""
    return {"math": tiny.qwen(1, width=24), "code": tiny.llama(2, rows=72)}


def trained(directory, teacher, method="opd", *, rows=ROWS, script=None, prepare=None, options=None, **settings):
    """A finished trainer with its recorder and its batches' micro-batches."""
    recorder = Recorder()
    trainer = build(
        directory,
        tiny.llama(0),
        teacher,
        method,
        rows=rows,
        script=replay(recorded(8)) if script is None else script,
        callbacks=[recorder],
        trainer_options=options,
        **settings,
    )
    trainer.recorder, trainer.batches, make = recorder, [], trainer._build_batch

    def and_note(inputs):
        trainer.batches.append(make(inputs))
        return trainer.batches[-1]

    trainer._build_batch = and_note
    if prepare is not None:
        prepare(trainer)
    trainer.train()
    return trainer


def rows_of(part) -> list[tuple]:
    """Each rollout of a micro-batch with the run of its tokens."""
    rows, first = [], 0
    for rollout in part.rollouts:
        rows.append((rollout, slice(first, first := first + sum(rollout.scored))))
    return rows


def logs_of(trainer) -> list[dict]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


# ---------------------------------------------------------------------- each row meets its own


def own_tokens_of(direct, tokens: slice) -> list[int]:
    """For each entry of a direct term in `tokens`, the id that its teacher finds likeliest."""
    if isinstance(direct, SeveralTerms):
        return [token for term in direct.terms for token in own_tokens_of(term, tokens)]
    inside = (direct.index >= tokens.start) & (direct.index < tokens.stop)
    if isinstance(direct, TopKTerm):
        return direct.token_ids[inside, 0].tolist()
    assert isinstance(direct, FullVocabularyTerm)
    return direct.teacher_head.logits(direct.teacher_hidden[inside]).argmax(-1).tolist()


@pytest.mark.parametrize("micro", [8, 2])
@pytest.mark.parametrize("method", METHODS)
def test_each_row_is_scored_by_its_own_teacher(tmp_path, method, micro):
    """Of three that are certain of different tokens, in shuffled data, with prefixes that the teachers write."""
    teachers = {name: certain(token, width=8 * (n + 1)) for n, (name, token) in enumerate(OWN_TOKEN.items())}
    written = [[20, 30, 40, 5, 20, EOS], [40, 20, 30, 6, EOS]] * 4
    settings = {
        "shuffle_dataset": True,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": 8 // micro,
    }
    settings |= {"tropd": {"guidance_length": "share"}, "eopd": {"teacher_entropy_tau": 1e-6}}.get(method, {})
    rows = [{"prompt": prompt, "teacher": name} for prompt, name in MORE.items()]
    trainer = trained(tmp_path, teachers, method, rows=rows, script=replay(written), max_steps=6, **settings)
    met, prefixes, direct = set(), 0, 0
    for part in (part for batch in trainer.batches for part in batch):
        for rollout, tokens in rows_of(part):
            name = MORE[tiny.tokenizer().decode(rollout.prompt_ids)]
            assert rollout.teacher == name
            own = torch.tensor([token == OWN_TOKEN[name] for token in rollout.response])
            scores = part.signals.teacher_logp[tokens]
            assert (scores[own] > -1e-3).all() and (scores[~own] < -15).all()
            assert set(rollout.response[: rollout.prefix_length]) <= {OWN_TOKEN[name]}
            if part.direct is not None:
                likeliest = own_tokens_of(part.direct, tokens)
                assert set(likeliest) <= {OWN_TOKEN[name]}
                direct += len(likeliest)
            met.add(name)
            prefixes += rollout.prefix_length
    assert met == set(OWN_TOKEN)
    assert bool(prefixes) == (method == "tropd") and bool(direct) == (method not in ("opd", "reopold"))


@pytest.mark.parametrize("method", ["opd", "tropd", "jsd", "gkd"])
def test_scores_are_those_of_the_rows_teacher_in_its_own_context(tmp_path, method):
    teachers = pair()
    rows = [{**row, "teacher_prompt": f"{row['teacher'][0]};{row['prompt']}"} for row in ROWS]
    trainer = trained(
        tmp_path, {name: clone(model) for name, model in teachers.items()}, method, rows=rows, max_steps=2
    )
    for (part,) in trainer.batches:
        for rollout, tokens in rows_of(part):
            prompt = tiny.tokenizer().decode(rollout.prompt_ids)
            name = OWNERS[prompt]
            assert rollout.teacher_context == ids(f"{name[0]};{prompt}")
            expected = tiny.plain_logp(teachers[name], rollout.teacher_context, rollout.response)
            torch.testing.assert_close(part.signals.teacher_logp[tokens].double(), expected, rtol=0, atol=1e-5)


def test_each_teacher_reads_its_own_rows_in_its_own_passes(tmp_path):
    teachers, calls = pair(), {"math": [], "code": []}
    for name, model in teachers.items():
        model.model.register_forward_pre_hook(
            lambda module, args, kwargs, name=name: calls[name].append(kwargs["input_ids"].shape[0]), with_kwargs=True
        )
    trained(tmp_path, teachers, teacher_batch_size=3)
    looked_at = [1, 1]  # before the first rollout: is what is read of it what it says itself?
    assert calls == {"math": [*looked_at, 3, 1], "code": [*looked_at, 3, 1]}


def test_a_model_with_two_names_is_loaded_once(tmp_path):
    model = tiny.llama(2)
    trainer = build(tmp_path, tiny.llama(0), {"math": model, "code": model}, "opd", rows=ROWS)
    assert trainer.teachers.by_name["math"] is trainer.teachers.by_name["code"]


def test_templates_are_each_teachers_own(tmp_path):
    rows = [{"prompt": [{"role": "user", "content": row["prompt"]}], "teacher": row["teacher"]} for row in ROWS]
    settings = {
        "teacher_chat_template": {"math": "m{{ messages[0]['content'] }}"},
        "teacher_chat_template_kwargs": {"code": {"enable_thinking": True}},
    }
    trainer = trained(tmp_path, pair(), rows=rows, **settings)
    contexts = {tiny.tokenizer().decode(rollout.teacher_context) for rollout in trainer.batches[0][0].rollouts}
    assert contexts == {"mab=", "u:cde+f=;a:t"}


def test_the_students_own_base_may_be_one_of_several(tmp_path):
    student = tiny.llama(0)
    options = {"peft_config": LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)}
    options["processing_class"] = tiny.tokenizer()
    trainer = build(
        tmp_path, student, {"math": student, "code": tiny.llama(2)}, rows=ROWS, script=replay(recorded(8)),
        trainer_options=options, guidance_length="share", max_steps=2,
    )  # fmt: skip
    teachers = trainer.teachers.by_name
    assert trainer.own_bases == {"math"} and isinstance(teachers["math"], BaseTeacher)
    assert not isinstance(teachers["code"], BaseTeacher)
    trainer.train()
    assert {"teacher/math/k1", "teacher/code/k1"} <= logs_of(trainer)[0].keys()


# ---------------------------------------------------------------------- nothing else changes


@pytest.mark.parametrize("method", METHODS)
def test_rows_of_one_teacher_take_the_steps_of_a_run_with_it_alone(tmp_path, method):
    """In one batch or in parts, to the last bit."""
    settings = {"max_steps": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    rows = [{**row, "teacher": "math"} for row in ROWS]
    several = trained(tmp_path / "several", pair(), method, rows=rows, **settings)
    alone = [{"prompt": row["prompt"]} for row in ROWS]
    one = trained(tmp_path / "one", pair()["math"], method, rows=alone, **settings)
    for ours, theirs in zip(several.recorder.steps, one.recorder.steps, strict=True):
        assert largest(theirs.gradients) > 1e-4
        assert largest_difference(ours.gradients, theirs.gradients) == 0
        assert largest_difference(ours.weights, theirs.weights) == 0
    for ours, theirs in zip(logs_of(several), logs_of(one), strict=True):
        names = [name for name in theirs if not name.startswith("speed/") and name != "step_time"]
        assert {name: ours[name] for name in names} == {name: theirs[name] for name in names}


@pytest.mark.parametrize(
    ("method", "changes"),
    [("opd", {}), ("gkd", {}), ("gkd", {"jsd_beta": 0.3}), ("jsd", {}), ("fkl", {}), ("reopold", {}), ("aopd", {})],
)
def test_a_batch_of_two_teachers_is_the_sum_of_what_each_gives_alone(tmp_path, method, changes):
    """N ∇ = N_1 ∇_1 + N_2 ∇_2, with N the counts of each batch; by methods that draw no gates."""
    written, settings = recorded(8), {"optim": "sgd", **changes}
    both = trained(tmp_path / "both", pair(), method, script=replay(written), **settings)
    counts, parts = [], []
    for number, name in enumerate(("math", "code")):
        mine = written[4 * number :][:4]
        counts.append(sum(map(len, mine)))
        rows = [{"prompt": ROWS[number]["prompt"]}]
        teacher, script = pair()[name], replay(mine)
        alone = trained(
            tmp_path / name, teacher, method, rows=rows, script=script, per_device_train_batch_size=4, **settings
        )
        parts.append(alone.recorder.steps[0].gradients)
    together = both.recorder.steps[0].gradients
    assert largest(together) > 1e-3
    for name, gradient in together.items():
        summed = sum(count * part[name] for count, part in zip(counts, parts, strict=True))
        torch.testing.assert_close(sum(counts) * gradient, summed, rtol=0, atol=2e-5 * sum(counts))


@pytest.mark.parametrize("method", METHODS)
def test_micro_batches_take_the_step_of_one_batch(tmp_path, method):
    steps = []
    for micro in (8, 4, 1):
        split = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": 8 // micro}
        steps.append(trained(tmp_path / str(micro), pair(), method, **split).recorder.steps[0].gradients)
    assert largest(steps[0]) > 1e-4
    for gradients in steps[1:]:
        assert largest_difference(steps[0], gradients) < 2e-5


def test_prefixes_are_those_that_a_teacher_alone_would_write(tmp_path):
    settings = {"guidance_length": "share", "guidance_schedule": "constant"}
    both = trained(tmp_path / "both", pair(), "tropd", **settings).batches[0][0].rollouts
    for name in ("math", "code"):
        rows = [{"prompt": row["prompt"]} for row in ROWS]
        alone = trained(tmp_path / name, pair()[name], "tropd", rows=rows, **settings).batches[0][0].rollouts
        mine = [(r.row, r.response[: r.prefix_length]) for r in both if r.teacher == name]
        theirs = [(r.row, r.response[: r.prefix_length]) for r in alone if r.row in dict(mine)]
        assert mine == theirs and any(prefix for _, prefix in mine)


# ---------------------------------------------------------------------- rows without a teacher of the run


def data(*names: object) -> Dataset:
    prompts = list(OWNERS)
    return Dataset.from_list([{"prompt": prompts[n], "teacher": name} for n, name in enumerate(names)])


@pytest.mark.parametrize(
    ("names", "refused"),
    [
        (
            ("math", "maths", "code", None),
            r"row 1 of the training data \(counted from 0\) names the teacher 'maths', which is unknown; the teachers "
            r"are math, code\. This affects 2 of 4 rows",
        ),
        (
            ("math", "code", None),
            r"row 2 of the training data .* names no teacher \(its 'teacher' is missing or None\)",
        ),
    ],
)
def test_a_row_without_a_teacher_of_the_run_is_refused_before_anything_is_loaded(tmp_path, names, refused):
    with pytest.raises(ValueError, match=refused):
        build(tmp_path, "no/student", pair(), "opd", rows=data(*names).to_list())


def test_data_without_the_column_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"row 0 of the training data .*names no teacher .*This affects 4 of 4 rows"):
        build(tmp_path, "no/student", pair(), "opd")


@pytest.mark.parametrize("evaluation", [data("math", "art"), {"hard": data("math", "art")}])
def test_evaluation_data_are_looked_at_too(tmp_path, evaluation):
    which = "the evaluation data" + (" 'hard'" if isinstance(evaluation, dict) else "")
    with pytest.raises(ValueError, match=f"row 1 of {which} .* names the teacher 'art'"):
        build(tmp_path, "no/student", pair(), "opd", rows=ROWS, trainer_options={"eval_dataset": evaluation})


def test_a_row_of_a_stream_is_refused_when_it_is_met(tmp_path):
    trainer = build(tmp_path, tiny.llama(0), pair(), "opd", rows=ROWS, script=replay(recorded(8)))
    with pytest.raises(ValueError, match=r"a row names the teacher 'art', which is unknown; .* Its prompt is 'q='"):
        tiny.roll_out(trainer, [{"prompt": "q=", "teacher": "art"}] * 8)
    stream = IterableDataset.from_generator(lambda: iter(ROWS))
    tiny.ScriptedTrainer(
        tiny.llama(0), pair(), args=tiny.config(tmp_path), train_dataset=stream, processing_class=tiny.tokenizer()
    )


def test_a_column_is_data_like_any_other_beside_one_teacher_and_that_is_said(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        trained(tmp_path, tiny.llama(2), rows=[{"prompt": p, "teacher": "who knows"} for p in OWNERS])
    assert "The training data has a column 'teacher', but teacher_model is one teacher" in caplog.text


@pytest.mark.parametrize(
    ("teachers", "settings", "refused"),
    [
        ({}, {}, "teacher is an empty mapping"),
        ({"a/b": "x"}, {}, "teacher has the name 'a/b'"),
        ({"math": ""}, {}, "teacher names 'math' without a model"),
        (
            None,
            {"teacher_chat_template": {"art": "teacher"}},
            "teacher_chat_template has 'art', which names no teacher",
        ),
        (None, {"teacher_model_init_kwargs": {"math": {}, "dtype": "float32"}}, "kwargs has 'dtype', which names no"),
        ("one", {"teacher_chat_template": {"math": "teacher"}}, r"has 'math', .*\(there is one, without a name\)"),
    ],
)
def test_names_and_settings_that_cannot_be_are_refused(tmp_path, teachers, settings, refused):
    with pytest.raises(ValueError, match=refused):
        build(tmp_path, "no/student", pair() if teachers is None else teachers, "opd", rows=ROWS, **settings)


def test_a_teacher_that_does_not_fit_is_named(tmp_path):
    teachers = pair() | {"code": tiny.llama(2, rows=48)}
    with pytest.raises(ValueError, match="the teacher 'code' cannot be used: the student's tokenizer uses token ids"):
        build(tmp_path, tiny.llama(0), teachers, "opd", rows=ROWS)


def test_several_teachers_have_no_only_one(tmp_path):
    trainer = build(tmp_path, tiny.llama(0), pair(), "opd", rows=ROWS)
    with pytest.raises(AttributeError, match=r"several teachers \(math, code\); select one by name"):
        trainer.teacher  # noqa: B018


# ---------------------------------------------------------------------- faults, metrics, records


@pytest.mark.parametrize("what", ["raises", "miscounts", "is not finite"])
def test_the_teacher_that_fails_is_named(tmp_path, what):
    def broken(trainer):
        teacher = trainer.teachers.by_name["code"]
        score = teacher.score

        def answer(*args, **options):
            scores = score(*args, **options)
            if what == "raises":
                raise RuntimeError("no answer")
            logp = scores.logp[1:] if what == "miscounts" else scores.logp * torch.nan
            return type(scores)(**(vars(scores) | {"logp": logp}))

        teacher.score = answer

    said = {
        "raises": r"^the teacher 'code' failed in step 1 \(RuntimeError: no answer\)",
        "miscounts": r"^the teacher 'code' failed in step 1 \(ValueError: it gave \d+ scores and \d+ entropies for",
        "is not finite": r"^the teacher 'code' has no finite score for any of the",
    }
    with pytest.raises(Exception, match=said[what]) as caught:
        trained(tmp_path, pair(), prepare=broken)
    assert isinstance(caught.value, TeacherFailed) == (what != "is not finite")


def weighted(values: Sequence[float], counts: Sequence[float]) -> float:
    return sum(v * n for v, n in zip(values, counts, strict=True)) / sum(counts)


def test_metrics_are_also_logged_for_each_teacher(tmp_path):
    trainer = trained(tmp_path, pair() | {"idle": tiny.llama(3)}, "tropd", guidance_schedule="none")
    (entry,) = logs_of(trainer)
    assert {name for name in entry if name.startswith("teacher/")} <= set(metric_names(trainer.teachers.names))
    assert not any(name.startswith("teacher/idle/") for name in entry)
    counts = [entry[f"teacher/{name}/num_tokens"] for name in ("math", "code")]
    assert counts == [sum(map(len, recorded(8)[:4])), sum(map(len, recorded(8)[4:]))]
    for whole, own in {"trust/fraction": "trust_fraction", "kl/k1": "k1", "entropy/teacher": "entropy"}.items():
        parts = [entry[f"teacher/{name}/{own}"] for name in ("math", "code")]
        assert parts[0] != parts[1] and weighted(parts, counts) == pytest.approx(entry[whole], rel=1e-5)


def test_evaluation_has_them_too(tmp_path):
    trainer = build(tmp_path, tiny.llama(0), pair(), "opd", rows=ROWS, script=replay(recorded(8)))
    evaluated = trainer.evaluate(tiny.same_dataset(ROWS[:2]))
    assert {"eval_teacher/math/k1", "eval_teacher/code/k1"} <= evaluated.keys()


def test_records_name_the_teachers(tmp_path):
    teachers = pair()
    for name, model in teachers.items():
        model.config._name_or_path = f"models/{name}"
    trained(tmp_path, teachers, rollout_log_steps=1, rollouts_per_log=8, save_final_model=True)
    records = [json.loads(line) for line in (tmp_path / "rollouts/step-000001.jsonl").read_text().splitlines()]
    assert [record["teacher"] for record in records] == ["math"] * 4 + ["code"] * 4
    described = json.loads((tmp_path / "run.json").read_text())
    assert described["teacher"] == {"math": "models/math", "code": "models/code"}
    assert "distilled from models/math (math), models/code (code)" in (tmp_path / "README.md").read_text()
