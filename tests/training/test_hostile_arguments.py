"""Whatever the trainer's methods are given: it is used, or refused in a sentence that names the argument."""

import inspect
import os

import pytest
import torch
from datasets import Dataset, IterableDataset
from datasets.iterable_dataset import ExamplesIterable
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback

from hostile import PYTHON, says_one_of
from training import tiny
from tropd import TrOPDTrainer
from tropd.training.guards.argument_types import ARGUMENTS
from tropd.training.guards.errors import DataFailed

PLACES = [(method, argument) for method, arguments in ARGUMENTS.items() for argument in arguments]
NEEDED = {
    "predict": {"test_dataset": tiny.same_dataset()},
    "add_callback": {"callback": PrinterCallback},
    "pop_callback": {"callback": PrinterCallback},
    "remove_callback": {"callback": PrinterCallback},
    "expect_endings": {"share": 0.5},
    "log": {"logs": {}},
    "log_metrics": {"split": "train", "metrics": {}},
    "save_metrics": {"split": "train", "metrics": {}},
}
"""What a call cannot do without."""


def make(directory, **changes):
    usual = {"model": tiny.llama(1), "teacher_model": tiny.llama(2), "train_dataset": tiny.same_dataset()}
    usual |= {"args": tiny.config(directory, "opd"), "processing_class": tiny.tokenizer()}
    return TrOPDTrainer(**usual | changes)


@pytest.fixture
def trainer(tmp_path):
    return make(tmp_path / "run", eval_dataset=tiny.same_dataset())


def fuzzed(places, call, part):
    """Call with values that nobody means; what is raised names the argument."""

    @settings(
        max_examples=60 if part == "few" else 2000,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(st.sampled_from(places), PYTHON)
    def look(place, value):
        method, argument = place
        try:
            call(method, argument, value)
        except Exception as error:
            says_one_of(error, [argument, "Hub", "checkpoint", "template"])

    look()


PARTS = pytest.mark.parametrize("part", ["few", pytest.param("many", marks=pytest.mark.slow)])


@PARTS
def test_an_argument_of_the_trainer_is_used_or_refused_by_its_name(part, tmp_path):
    places = [place for place in PLACES if place[0] == "__init__"]
    fuzzed(places, lambda _, argument, value: make(tmp_path, **{argument: value}), part)


@PARTS
def test_an_argument_of_a_method_is_used_or_refused_by_its_name(part, trainer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(method, argument, value):
        getattr(trainer, method)(**NEEDED.get(method, {}) | {argument: value})

    # What else the metrics hold, and a split by the name of a folder, is the caller's own file.
    ours = [place for place in PLACES if place[0] != "__init__" and place[1] not in ("metrics", "split", "logs")]
    fuzzed(ours, call, part)


def test_every_argument_of_the_trainer_is_looked_at():
    host = inspect.signature(TrOPDTrainer.__mro__[1].__init__).parameters
    looked_at = {"self", "model", "teacher_model", "args", *ARGUMENTS["__init__"]}
    assert {*host, *inspect.signature(TrOPDTrainer.__init__).parameters} - {"kwargs"} == looked_at


@pytest.mark.parametrize(
    ("argument", "value", "sentence"),
    [
        ("train_dataset", [{"prompt": "a="}], r"train_dataset is .*; it takes None, Dataset or IterableDataset"),
        ("eval_dataset", {"a": 5}, r"eval_dataset\.a is 5; it takes Dataset or IterableDataset"),
        ("eval_dataset", Dataset.from_list([{"q": "a="}]), r"the evaluation data has no `prompt` column \(it has: q\)"),
        ("callbacks", [int], r"callbacks\[0\] is <class 'int'>; it takes TrainerCallback or a class of that kind"),
        ("callbacks", (), r"callbacks is \(\), a tuple\. Give a list"),
        ("optimizers", (None, 5), r"optimizers\[1\] is 5; it takes None or LRScheduler"),
        ("optimizers", (None,), r"optimizers is \(None,\); it takes a tuple of 2"),
        ("reward_funcs", [5], r"reward_funcs\[0\] is 5; it takes text or a function"),
        ("reward_funcs", "no/reward", r"reward_funcs\[0\] \('no/reward'\) cannot be loaded"),
        ("reward_processing_classes", [], "reward_processing_classes has 0, but there are 0 reward_funcs"),
        ("processing_class", None, "processing_class is None, and the student was not loaded from a folder"),
        ("processing_class", "no/name", r"processing_class is 'no/name'; it takes .*PreTrainedTokenizerBase"),
        ("teacher_processing_class", {"a": 5}, r"teacher_processing_class\.a is 5; it takes"),
        ("peft_config", {"r": 8}, r"peft_config is .*; it takes None or PeftConfig"),
        ("tools", 5, "tools is 5; it takes a list or None"),
        ("environment_factory", 5, "environment_factory is 5; it takes a mapping, a function or None"),
        ("rollout_func", 5, "rollout_func is 5; it takes a function or None"),
        ("model", "no/model", r"model \('no/model'\) cannot be loaded: .*Name a folder"),
        ("teacher_model", "no/model", r"teacher_model \('no/model'\) cannot be loaded: .*Name a folder"),
    ],
)
def test_what_an_argument_cannot_be_is_said_of_it(argument, value, sentence, tmp_path):
    with pytest.raises(ValueError, match=rf"^{sentence}"):
        make(tmp_path, **{argument: value})


@pytest.mark.parametrize(
    ("method", "value", "sentence"),
    [
        ("train", 5, "resume_from_checkpoint is 5; it takes true or false, text or None"),
        ("train", "", "resume_from_checkpoint is ''; give True"),
        ("train", "x\0", r"resume_from_checkpoint is 'x\\x00', which contains a NUL"),
        ("evaluate", 5, "eval_dataset is 5; it takes"),
        ("evaluate", "hard", "eval_dataset is 'hard', which is not one of the trainer's evaluation sets"),
        ("evaluate", Dataset.from_list([{"prompt": 1}]), "eval_dataset has prompts of the type"),
        ("predict", Dataset.from_list([{"q": "a"}]), "the evaluation data has no `prompt` column"),
        ("save_model", 5, "output_dir is 5; it takes text or None"),
        ("save_model", "", "output_dir is ''; name a folder"),
        ("save_model", os.devnull, "output_dir is '/dev/null', which is a file"),
        ("push_to_hub", 5, "commit_message is 5; it takes text or None"),
        ("push_to_hub", "a message", "the Hub cannot be written to"),
        ("add_callback", int, "callback is <class 'int'>; it takes TrainerCallback"),
        ("log", 5, "logs is 5; it takes a mapping"),
    ],
)
def test_what_a_method_cannot_be_given_is_said_of_it(method, value, sentence, trainer):
    with pytest.raises(ValueError, match=rf"^{sentence}"):
        getattr(trainer, method)(value)


# ---------------------------------------------------------------------- of the right type, and wrong all the same


def stream(row):
    return IterableDataset(ExamplesIterable(lambda: ((number, row) for number in range(8)), {}))


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"prompt": 1}, "a row has the prompt 1; a prompt is text, or messages"),
        ({"prompt": None}, "a row has the prompt None"),
        ({"q": "a="}, "a row has the prompt None"),
        ({"prompt": [{"content": "a"}]}, "a row has the prompt .*messages with role and content"),
        ({"prompt": "a=", "prompts": "b="}, "a row has a column 'prompts', but TRL passes"),
        ({"prompt": "a=", "images": "b"}, "a row has a column 'images', but TRL would treat it as images"),
    ],
)
def test_a_row_of_a_stream_that_is_no_prompt_stops_the_run_in_a_sentence(row, why, tmp_path):
    with pytest.raises(DataFailed, match=rf"^the training data cannot be read further at step 1 \(ValueError: {why}"):
        make(tmp_path / "train", train_dataset=stream(row)).train()
    with pytest.raises(
        DataFailed, match=rf"^the evaluation data cannot be read further after step 0 \(ValueError: {why}"
    ):
        make(tmp_path / "evaluate").evaluate(stream(row))


def frozen():
    model = tiny.llama(1)
    model.requires_grad_(False)
    return model


def disabled():
    model = get_peft_model(tiny.llama(1), LoraConfig(r=2, target_modules=["q_proj"]))
    model.disable_adapter_layers()
    return model


@pytest.mark.parametrize("student", [frozen, disabled])
def test_a_student_without_a_weight_to_train_is_refused(student, tmp_path):
    with pytest.raises(ValueError, match=r"^the student \(model\) has no trainable weights: all are frozen"):
        make(tmp_path, model=student())


@pytest.mark.parametrize("role", ["model", "teacher_model"])
def test_weights_without_values_are_refused(role, tmp_path):
    with torch.device("meta"):
        model = tiny.llama(1)
    with pytest.raises(ValueError, match=rf"^{role}.* has weights on the meta device"):
        make(tmp_path, **{role: model})


def test_an_optimiser_of_another_model_is_refused_and_of_a_part_is_told(tmp_path, caplog):
    student = tiny.llama(1)
    other, part = (torch.optim.SGD(of.parameters(), lr=0.1) for of in (tiny.llama(1), student.lm_head))
    with pytest.raises(ValueError, match=r"^optimizers\[0\] holds no weights of the student"):
        make(tmp_path, model=student, optimizers=(other, None))
    with pytest.raises(ValueError, match=r"^optimizers\[1\] schedules a different optimiser"):
        make(tmp_path, model=student, optimizers=(part, LambdaLR(other, lambda step: 1.0)))
    make(tmp_path, model=student, optimizers=(part, LambdaLR(part, lambda step: 1.0)))
    assert "optimizers[0] holds 1 of the student's 21 trainable weights; the others stay" in caplog.text


def test_what_a_checkpoint_could_not_hold_is_refused_when_it_is_logged(trainer):
    trainer.log({"a": 1.0, "b": float("nan"), "c": "text"})
    with pytest.raises(ValueError, match=r"^logs has a value that is not a number or text \(.*Tensor"):
        trainer.log({"a": torch.tensor(1.0)})


def test_arguments_of_the_card_that_have_no_effect_are_told(trainer, caplog):
    trainer.create_model_card(license="mit")
    assert "create_model_card takes no arguments here" in caplog.text


def test_a_default_precision_of_double_changes_no_rollout(tmp_path):
    found = []
    for dtype in (torch.float32, torch.float64):
        trainer = make(tmp_path / str(dtype))
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            trainer.train()
        finally:
            torch.set_default_dtype(before)
        found.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert found[0] == pytest.approx(found[1], abs=1e-5)
