"""A student and a teacher that end with different ids: trained as one action, stopped at, written down and saved.

The shipped pair ends with id 2. A copy of its teacher ends with id 3, and is the same teacher but for that.
"""

import json
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

import shipped
from training import tiny
from training.test_notes import passes, rolled_out  # noqa: F401  (a fixture)
from tropd.atomic_files import read_jsonl
from tropd.comparison.other_ending import write_with_ending
from tropd.training.checkpointing.saving import save_ending
from tropd.training.set_up import find_endings
from tropd.training.step import scores_of_sampler

OWN, OTHER = 2, 3
CPU = torch.device("cpu")
ROWS = [{"prompt": problem["prompt"]} for problem in shipped.sums_of_two(8)]
ROOM = 40
"""Tokens of a response, the longest of which has 28."""
TIMES = {"step_time", "epoch", "learning_rate", "num_tokens", "step"}
GUIDED = {"guidance_schedule": "constant"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Models on disk by name.

    `student` and `teacher` are the shipped pair. `other` is the teacher with the other ending. `moved` is the student
    as forward KL leaves it: it writes the other ending, and names its own. `torn` writes both, with the same
    probability.
    """
    folder = tmp_path_factory.mktemp("models")
    write_with_ending(shipped.teacher_path(), "<unk>", folder / "other")
    for name, rows, values in (("moved", [OWN, OTHER], [OTHER, OWN]), ("torn", [OTHER], [OWN])):
        model = AutoModelForCausalLM.from_pretrained(shipped.student_path())
        with torch.no_grad():
            weight = model.get_input_embeddings().weight
            weight[rows] = weight[values].clone()
        model.save_pretrained(folder / name)
        AutoTokenizer.from_pretrained(shipped.student_path()).save_pretrained(folder / name)
    made = {name: str(folder / name) for name in ("other", "moved", "torn")}
    return made | {"student": str(shipped.student_path()), "teacher": str(shipped.teacher_path())}


@pytest.fixture
def trainer_of(tmp_path, folders):
    """Builds a trainer of two models by their names."""

    def make(method="opd", student="student", teacher="other", *, name="run", rows=ROWS, options=None, **settings):
        settings = {"max_completion_length": ROOM} | settings
        options = {"processing_class": None} | (options or {})
        teachers = {key: folders[value] for key, value in teacher.items()} if isinstance(teacher, dict) else None
        return tiny.build(
            tmp_path / name,
            folders[student],
            teachers or folders[teacher],
            method,
            rows=rows,
            trainer_options=options,
            **settings,
        )

    return make


@pytest.fixture
def trained(trainer_of):
    def make(*names, **settings):
        trainer = trainer_of(*names, **settings)
        trainer.train()
        return trainer

    return make


def logged(trainer):
    """What each step logged, without what a clock says."""
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [{name: step[name] for name in step if name not in TIMES and "speed/" not in name} for step in steps]


# ---------------------------------------------------------------------- what is learned


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("opd", {}),
        ("tropd", {}),
        ("fkl_outlier", {}),
        ("gkd", {}),
        ("jsd", {}),
        ("eopd", {}),
        ("fkl", {"fkl_top_k": 190}),
        ("tropd_support", {}),
        ("tropd_support", {"support": "union", "fkl_top_k": 4}),
    ],
)
def test_a_teacher_with_another_ending_teaches_what_it_taught_with_the_same(trained, method, settings):
    """As one action, but for the probability that the student gives to id 3 itself; as given, never."""
    (alike,) = logged(trained(method, teacher="teacher", **settings))
    (one,) = logged(trained(method, name="one", **settings))
    assert one == pytest.approx(alike, abs=5e-5)
    assert one["log_ratio/ending_outlier_share"] == one["response/other_ending_share"] == 0
    (apart,) = logged(trained(method, name="apart", ending="as_given", **settings))
    assert apart["log_ratio/ending_outlier_share"] == 1
    assert apart["kl/k1"] > alike["kl/k1"] + 0.3 and apart["log_ratio/p01"] < -10
    assert apart["trust/fraction"] < alike["trust/fraction"] - 0.02
    assert abs(apart["loss"] - alike["loss"]) > 0.01


@pytest.mark.parametrize("method", ["opd", "tropd", "gkd"])
def test_where_both_end_alike_no_bit_changes(trained, method):
    one, apart = (
        trained(method, teacher="teacher", name=ending, ending=ending, max_steps=3)
        for ending in ("one_action", "as_given")
    )
    assert logged(one) == logged(apart) and len(logged(one)) == 3
    before = AutoModelForCausalLM.from_pretrained(shipped.student_path())
    weights, others = tiny.weights_of(one.model), tiny.weights_of(apart.model)
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert tiny.largest_difference(weights, tiny.weights_of(before)) > 0


def test_a_top_k_of_more_ids_than_there_are_outcomes_holds_them_all(trained):
    (step,) = logged(trained("fkl", fkl_top_k=1000))
    assert step["teacher/topk_mass"] == pytest.approx(1, abs=1e-6)
    assert step["student/topk_mass"] == pytest.approx(1, abs=1e-6)


def test_teachers_with_different_endings_teach_the_student_alike(trained):
    rows = [row | {"teacher": name} for row, name in zip(ROWS, "ab" * 4, strict=True)]
    (step,) = logged(trained(teacher={"a": "teacher", "b": "other"}, rows=rows))
    (alike,) = logged(trained(teacher="teacher", rows=rows, name="alike"))
    assert step["kl/k1"] == pytest.approx(alike["kl/k1"], abs=5e-5)
    assert step["log_ratio/ending_outlier_share"] == 0 and {"teacher/a/k1", "teacher/b/k1"} <= step.keys()


# ---------------------------------------------------------------------- where rollouts stop


@pytest.mark.parametrize(("student", "ids"), [("student", {OWN}), ("moved", {OTHER}), ("torn", {OWN, OTHER})])
def test_rollouts_stop_at_either_ending_and_their_records_say_at_which(trained, tmp_path, student, ids):
    trainer = trained(student=student, rollout_log_steps=1, rollouts_per_log=8)
    records = read_jsonl(tmp_path / "run" / "rollouts" / "step-000001.jsonl")
    assert {record["ended_by"] for record in records} == ids and len(records) == 8
    for record in records:
        written = [token["id"] for token in record["tokens"]]
        assert written[-1] == record["ended_by"] and not {OWN, OTHER} & {*written[:-1]}
    (step,) = logged(trainer)
    by_other = sum(record["ended_by"] == OTHER for record in records)
    assert step["response/eos_share"] == 1 and step["response/other_ending_share"] == by_other / 8
    assert trainer.ended_by == {i: n for i, n in ((OWN, 8 - by_other), (OTHER, by_other)) if n}
    assert "response/unheeded_ending_share" not in step


def test_as_given_the_students_own_ending_alone_stops_it(trained):
    trainer = trained(student="moved", ending="as_given")
    (step,) = logged(trainer)
    assert (step["response/eos_share"], step["response/unheeded_ending_share"]) == (0, 1)
    assert trainer.ended_by == {} and step["response/length"] == ROOM
    (step,) = logged(trained(student="moved", ending="as_given", ending_ids=[OWN, OTHER], name="both"))
    assert (step["response/eos_share"], step["response/other_ending_share"]) == (1, 1)


def test_transformers_own_loop_stops_at_either_too(trained):
    assert trained(student="torn", addressed_sampling=False).ended_by.keys() == {OWN, OTHER}
    assert trained(student="moved", generation_kwargs={"use_cache": False}, name="plain").ended_by == {OTHER: 8}


def test_vllm_is_told_every_ending_beside_the_users_own(trainer_of):
    trainer = trainer_of()
    trainer.eos_token_ids = trainer.model.generation_config.eos_token_id = [OWN]
    trainer.use_vllm = True
    trainer.vllm_generation = SimpleNamespace(generation_kwargs={"stop_token_ids": [7], "skip_special_tokens": False})
    found = find_endings(trainer)
    assert found.stop_ids == (OWN, OTHER) and trainer.eos_token_ids == [OWN, OTHER]
    assert trainer.vllm_generation.generation_kwargs == {"stop_token_ids": [2, 3, 7], "skip_special_tokens": False}


# ---------------------------------------------------------------------- whose numbers are believed


@pytest.mark.parametrize("method", ["opd", "tropd"])
def test_the_sampler_notes_the_probability_of_ending_at_all_as_a_pass_finds_it(trainer_of, method):
    trainer = trainer_of(method, "torn", **(GUIDED if method == "tropd" else {}))
    rollouts = rolled_out(trainer, ROWS[:4])
    noted, found = scores_of_sampler(rollouts, CPU), tiny.score_student(trainer, rollouts)
    ours = torch.tensor([place >= r.prefix_length for r in rollouts for place in r.scored_positions()])
    torch.testing.assert_close(noted.rollout_logp[ours], found.trainer_logp[ours], atol=3e-5, rtol=0)
    torch.testing.assert_close(noted.entropy[ours], found.entropy[ours], atol=3e-5, rtol=0)
    last = noted.rollout_logp[torch.tensor([len(r.response) for r in rollouts]).cumsum(0) - 1]
    ends = [tiny.plain_logps(trainer.model, r.prompt_ids, r.response)[-1, [OWN, OTHER]] for r in rollouts]
    assert all(r.ended for r in rollouts) and all(own == other for own, other in ends), "each id has half of it"
    torch.testing.assert_close(last, torch.stack(ends).logsumexp(-1).float(), atol=3e-5, rtol=0)
    assert last.median() > -0.1, "half of it would be a log of -0.69"


def test_training_on_what_the_sampler_notes_is_training_with_a_pass(trainer_of, passes):  # noqa: F811
    runs = []
    for rescore in (None, True):
        recorder = tiny.Recorder()
        trainer = trainer_of("opd", "torn", name=str(rescore), rescore_rollouts=rescore, max_steps=2)
        trainer.add_callback(recorder)
        passes.clear()
        trainer.train()
        assert len(passes) == (2 if rescore else 0)
        runs.append((logged(trainer), recorder.steps))
    (noted, steps), (found, others) = runs
    assert all(step.pop("sampler/logp_gap") < 3e-5 for step in (*noted, *found))
    assert noted == [pytest.approx(step, abs=2e-4, rel=1e-4) for step in found]
    for ours, theirs in zip(steps, others, strict=True):
        assert tiny.largest_difference(ours.gradients, theirs.gradients) < 5e-5 * max(tiny.largest(theirs.gradients), 1)


def from_another_engine(trainer, ending):
    """A script as vLLM answers: two rows that end with `ending`, and one that is cut, each token with a log of -0.5."""
    rows = [[9, 8, ending], [9, ending], [9, 8, 7]]

    def script(contexts):
        written = [list(rows[i % 3]) for i in range(len(contexts))]
        return written, [[-0.5] * len(row) for row in written]

    trainer.script = script
    return rolled_out(trainer, ROWS[:4])


@pytest.mark.parametrize("ending", [OWN, OTHER])
def test_what_another_engine_says_of_an_ending_is_of_one_id_and_not_believed(trainer_of, ending):
    trainer = trainer_of()
    rollouts = from_another_engine(trainer, ending)
    scores = tiny.score_student(trainer, rollouts)
    tokens = torch.tensor([token for rollout in rollouts for token in rollout.response])
    ends = tokens == ending
    assert ends.sum() == 6 and torch.equal(scores.sampler_logp.isfinite(), ~ends)
    assert (scores.rollout_logp[~ends] == -0.5).all()
    assert torch.equal(scores.rollout_logp[ends], scores.trainer_logp[ends])


@pytest.mark.parametrize("settings", [{"ending": "as_given"}, {"teacher": "teacher"}], ids=["as given", "alike"])
def test_where_each_ending_is_an_action_of_its_own_another_engine_is_believed_throughout(trainer_of, settings):
    trainer = trainer_of(**settings)
    scores = tiny.score_student(trainer, from_another_engine(trainer, OWN))
    assert scores.sampler_logp.isfinite().all() and (scores.rollout_logp == -0.5).all()


# ---------------------------------------------------------------------- the teacher's responses


@pytest.mark.parametrize("ending", ["one_action", "as_given"])
@pytest.mark.parametrize("end", [OWN, OTHER])
@pytest.mark.parametrize("kind", ["ids", "text"])
def test_given_responses_are_cut_at_either_models_ending(trainer_of, ending, end, kind):
    text = "5 4 3 2" + {OWN: "<eos>", OTHER: "<unk>"}[end] + "1 1 1"
    response = {"ids": [9, 8, 7, 6, end, 5, 5, 5], "text": text}[kind]
    trainer = trainer_of("tropd", rows=[row | {"teacher_response": response} for row in ROWS], ending=ending, **GUIDED)
    starts = [r.response[: r.prefix_length] for r in rolled_out(trainer, trainer.train_dataset.to_list()[:4])]
    assert starts == [[9, 8, 7]] * 8, "all but the last token, which is left to the student"


@pytest.mark.parametrize("ending", ["one_action", "as_given"])
def test_what_the_teacher_writes_is_cut_at_its_ending(trainer_of, ending):
    apart, alike = trainer_of("tropd", ending=ending), trainer_of("tropd", teacher="teacher", name="alike")
    responses, expected = (
        trainer.rollout_stage._teacher_responses(ROWS, [4 * n for n in range(8)], 1.0, trainer.method)
        for trainer in (apart, alike)
    )
    assert responses == expected
    assert all(not {OWN, OTHER} & {*response} and 10 < len(response) < ROOM - 5 for response in responses)


# ---------------------------------------------------------------------- what is saved


def read_anew(folder):
    """Model and tokenizer as Transformers reads them, and greedy continuations, told nothing of endings."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    batch = tokenizer([row["prompt"] for row in ROWS[:4]], return_tensors="pt", padding=True, padding_side="left")
    output = model.generate(**batch, do_sample=False)
    return model, tokenizer, output[:, batch["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize(("student", "end", "named"), [("student", OWN, "<eos>"), ("moved", OTHER, "<unk>")])
def test_the_saved_student_stops_outside_of_here_too(trained, tmp_path, student, end, named):
    saving = {"save_final_model": True, "save_strategy": "steps", "save_steps": 1}
    trainer = trained(student=student, learning_rate=1e-5, **saving)
    for folder in (tmp_path / "run", tmp_path / "run" / "checkpoint-1"):
        model, tokenizer, written = read_anew(folder)
        assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [OWN, OTHER]
        assert model.generation_config.max_new_tokens == 240
        assert all(end in row and len(row) < ROOM and {*row[row.index(end) + 1 :]} <= {0} for row in written)
        assert tokenizer.eos_token == named
    assert trainer.processing_class.eos_token == "<eos>", "the run goes on with the tokenizer that it has"


@pytest.mark.parametrize(
    ("ended_by", "named"),
    [({}, "<eos>"), ({OWN: 5, OTHER: 3}, "<eos>"), ({OWN: 4, OTHER: 4}, "<eos>"), ({OTHER: 5, OWN: 3}, "<unk>")],
)
def test_the_saved_tokenizer_names_the_ending_of_most_responses(trainer_of, tmp_path, ended_by, named):
    trainer = trainer_of()
    trainer.ended_by = ended_by
    trainer.save_model(str(tmp_path / "saved"))
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").eos_token == named
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert model.generation_config.eos_token_id == [OWN, OTHER]


def test_a_processor_is_saved_with_its_tokenizers_ending(tmp_path):
    """A processor of several modalities holds the tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(shipped.student_path())

    class Processor:
        def __init__(self):
            self.tokenizer = tokenizer

        def save_pretrained(self, folder):
            self.tokenizer.save_pretrained(folder)

    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(unwrap_model=lambda model: model),
        model=torch.nn.Linear(1, 1),
        ended_by={OTHER: 1},
        _tokenizer=tokenizer,
        processing_class=Processor(),
    )
    save_ending(trainer, str(tmp_path))
    assert AutoTokenizer.from_pretrained(tmp_path).eos_token == "<unk>" and tokenizer.eos_token == "<eos>"


def test_as_given_the_saved_student_stops_where_its_rollouts_did(trained, tmp_path):
    trained(ending="as_given", save_final_model=True)
    model, tokenizer, written = read_anew(tmp_path / "run")
    assert model.generation_config.eos_token_id in (OWN, [OWN]) and tokenizer.eos_token == "<eos>"
    assert all(OWN in row for row in written)


def test_an_adapter_has_its_endings_beside_it(trained, tmp_path):
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    saving = {"save_final_model": True, "save_strategy": "steps", "save_steps": 1}
    trained(options={"peft_config": lora}, **saving)
    for folder in (tmp_path / "run", tmp_path / "run" / "checkpoint-1"):
        assert (folder / "adapter_config.json").is_file()
        assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [OWN, OTHER]


def test_by_what_the_last_step_ended_survives_a_resumption(trained, trainer_of, tmp_path):
    saving = {"student": "torn", "save_strategy": "steps", "save_steps": 1}
    before = trained(**saving).ended_by
    state = json.loads((tmp_path / "run" / "checkpoint-1" / "tropd_state.json").read_text())
    assert state["ended_by"] == {str(i): n for i, n in before.items()} and sum(before.values()) == 8
    seen = []

    class Look(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            seen.append(dict(resumed.ended_by))

    resumed = trainer_of(max_steps=2, **saving)
    resumed.add_callback(Look())
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    assert seen == [before]


@pytest.mark.parametrize(("ending", "reason"), [("one_action", None), ("as_given", "ending is as_given")])
def test_the_run_directory_says_how_responses_end(trained, tmp_path, ending, reason):
    trained(ending=ending)
    one = ending == "one_action"
    assert json.loads((tmp_path / "run" / "run.json").read_text())["endings"] == {
        "ids": [OWN, OTHER],
        "stop_ids": [OWN, OTHER] if one else [OWN],
        "one_action": one,
        "reason": reason,
        "student": [OWN],
        "teachers": {"teacher": [OTHER]},
    }
