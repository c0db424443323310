"""Every mistake gets a sentence: field or file and line, the value, why, what to type. Exit code 2, no traceback."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file


@dataclass(frozen=True)
class Mistake:
    """A command that cannot work, and what its sentence must say."""

    name: str
    words: Callable
    says: tuple[str, ...]


def train(**changes):
    return lambda at: ["train", *at.fields(**changes)]


def with_file(command: str, content: str):
    return lambda at: [command, "--config", at.text("run.yaml", content)]


def with_rows(rows, **changes):
    return lambda at: ["train", *at.fields(data=at.jsonl("rows.jsonl", rows), **changes)]


def with_text(content: str, **changes):
    return lambda at: ["train", *at.fields(data=at.text("rows.jsonl", content), **changes)]


def broken(role: str, break_it, **changes):
    """Train with a damaged copy of a model folder."""

    def words(at):
        break_it(at.copy(role, "broken"))
        return ["train", *at.fields(**{role: "broken"}, **changes)]

    return words


def beside_an_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "teacher", "peft_type": "LORA"}))


def without_checkpointing(folder: Path) -> None:
    """Another architecture, whose layers cannot be computed again in the backward pass."""
    from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 256, "bos_token_id": 1, "eos_token_id": 2}
    OpenAIGPTLMHeadModel(OpenAIGPTConfig(vocab_size=rows, **sizes)).save_pretrained(folder)


def linked_to_nothing(at):
    (at.root / "out").symlink_to("nowhere")
    return ["train", *at.fields()]


def remove(*names: str):
    return lambda folder: [(folder / name).unlink() for name in names]


def shorten(name: str):
    return lambda folder: (folder / name).write_text((folder / name).read_text()[:-20])


def lacking(folder: Path) -> None:
    """A tensor fewer than the configuration asks for."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors.pop(next(name for name in tensors if "down_proj" in name))
    save_file(tensors, path, {"format": "pt"})


def cut_short(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def pickled(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def other_ids(folder: Path) -> None:
    """Two tokens change places."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = sorted(vocabulary, key=vocabulary.get)[5:7]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(tokenizer))


def without_numbers(folder: Path) -> None:
    """Weights that are not numbers."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file({name: torch.full_like(tensor, torch.nan) for name, tensor in tensors.items()}, path, {"format": "pt"})


def used_directory(at):
    (at.root / "out").mkdir()
    at.text("out/results.txt", "precious")
    return ["train", *at.fields()]


WHOLE = "student: student\nteacher: teacher\ndata: prompts.jsonl\noutput_dir: out\n"
ROW = {"prompt": "1+2+3="}

MISTAKES = [
    Mistake("no command of this name", lambda at: ["trian"], ("'trian' is not a command", "did you mean 'train'?")),
    Mistake(
        "an unknown option of a command",
        lambda at: ["methods", "--jason"],
        ("--jason is not an option of `tropd methods`", "tropd methods --help"),
    ),
    Mistake("an unknown method to explain", lambda at: ["methods", "tropdd"], ("'tropdd'", "did you mean 'tropd'?")),
    Mistake("no configuration", lambda at: ["train"], ("there is no configuration", "--config", "--student A")),
    Mistake(
        "a configuration that is not there",
        lambda at: ["train", "--config", "run.yml"],
        ("--config is 'run.yml'", "no such file"),
    ),
    Mistake(
        "YAML that does not parse",
        with_file("train", "student: [a\nteacher: b\n"),
        ("run.yaml, line 2 is not YAML", "expected"),
    ),
    Mistake(
        "an unknown key",
        with_file("train", WHOLE + "lerning_rate: 1.0e-5\n"),
        ("run.yaml, line 5: lerning_rate is unknown", "did you mean 'learning_rate'?"),
    ),
    Mistake("an unknown field", train(fkl_topk=3), ("fkl_topk is unknown", "did you mean 'fkl_top_k'?")),
    Mistake("a name of TRL's", train(dataset_name="x"), ("dataset_name is unknown; here it is 'data'",)),
    Mistake(
        "an unknown method",
        with_file("check", WHOLE + "method: trop\n"),
        ("run.yaml, line 5: method is 'trop', which is unknown", "did you mean 'tropd'?", "Known: opd"),
    ),
    Mistake(
        "a setting that the method never reads",
        train(method="opd", guidance_beta=0.1),
        ("guidance_beta is 0.1, which would have no effect under method 'opd'", "Remove it or choose another"),
    ),
    Mistake("a value of the wrong type", train(max_steps="many"), ("max_steps is 'many'", "valid integer")),
    Mistake("a value out of range", train(method="fkl", fkl_top_k=0), ("fkl_top_k is 0", "at least 1")),
    Mistake(
        "a setting of GRPO's loss",
        with_file("train", WHOLE + "beta: 0.1\n"),
        ("run.yaml, line 5: beta is 0.1, but it belongs to GRPO's loss", "Remove it"),
    ),
    Mistake("an adapter's setting alone", train(lora_r=4), ("lora_r is 4", "no effect", "use_peft: true")),
    Mistake(
        "evaluation data alone", train(eval_data="prompts.jsonl"), ("eval_data is 'prompts.jsonl'", "eval_strategy")
    ),
    Mistake("an evaluation without data", train(eval_strategy="steps"), ("eval_strategy is 'steps'", "no eval_data")),
    Mistake(
        "rewards mixed in without rewards",
        train(reward_mixing_weight=0.5),
        ("reward_mixing_weight is 0.5", "no rewards to mix in"),
    ),
    Mistake("an unknown reward", train(reward_funcs="accurracy"), ("reward_funcs has 'accurracy'", "accuracy_reward")),
    Mistake(
        "a system prompt for text",
        train(system_prompt="Be brief."),
        ("system_prompt", "chat"),
    ),
    Mistake("no student", train(student=None), ("student is not set", "--student path/or/name")),
    Mistake("no data", train(data="prompt.jsonl"), ("no file or folder prompt.jsonl", "Did you mean 'prompts.jsonl'?")),
    Mistake("empty data", with_text(""), ("rows.jsonl", "no rows")),
    Mistake("a missing column", with_rows([{"question": "1+2="}]), ("no column 'prompt'", "question")),
    Mistake("a row that is not JSON", with_text('{"prompt": "1+2="}\n{"prompt": \n'), ("rows.jsonl:2", "JSON")),
    Mistake("an empty prompt", with_rows([ROW, {"prompt": " "}]), ("rows.jsonl:2", "empty")),
    Mistake(
        "many bad rows",
        with_rows([ROW, *[{"prompt": ""}] * 14]),
        ("rows.jsonl:2", "rows.jsonl:11", "4 more"),
    ),
    Mistake(
        "a prompt beyond the budget",
        with_rows([ROW, {"prompt": "1+" * 300}]),
        ("rows.jsonl:2", "600 tokens", "overlong_prompts: drop"),
    ),
    Mistake(
        "a response beyond every context",
        train(max_completion_length=1000),
        ("max_completion_length", "1000", "512"),
    ),
    Mistake(
        "a teacher response without tokens",
        with_rows([ROW | {"teacher_response": "ones:"}, ROW | {"teacher_response": ""}], method="tropd"),
        ("rows.jsonl:2", "teacher_response"),
    ),
    Mistake(
        "vocabularies that differ",
        broken("teacher", other_ids),
        ("okenizers disagree on 2 of 191 tokens", "'1' is 5 for the student and 6 for the teacher"),
    ),
    Mistake("no model folder", train(student="studnet/"), ("student is 'studnet", "student")),
    Mistake("a file for a model", train(teacher="prompts.jsonl"), ("teacher is 'prompts.jsonl'", "file")),
    Mistake(
        "a folder without configuration",
        broken("student", remove("config.json")),
        ("student is 'broken'", "config.json"),
    ),
    Mistake(
        "a folder without weights", broken("teacher", remove("model.safetensors")), ("teacher is 'broken'", "weights")
    ),
    Mistake("weights cut short", broken("student", cut_short), ("student is 'broken'", "model.safetensors", "bytes")),
    Mistake(
        "pickled weights only", broken("teacher", pickled), ("teacher is 'broken'", "pytorch_model.bin", "safetensors")
    ),
    Mistake(
        "no tokenizer",
        broken("student", remove("tokenizer.json", "tokenizer_config.json")),
        ("student is 'broken'", "tokenizer"),
    ),
    Mistake(
        "an output directory that is not empty",
        used_directory,
        ("output_dir is 'out', which is not empty (it holds results.txt)", "--resume_from_checkpoint latest"),
    ),
    Mistake(
        "nothing to resume from",
        train(resume_from_checkpoint="latest"),
        ("resume_from_checkpoint is 'latest'", "no checkpoint in output_dir 'out'"),
    ),
    Mistake(
        "no checkpoint of this name",
        train(resume_from_checkpoint="out/checkpoint-9"),
        ("resume_from_checkpoint is 'out/checkpoint-9'", "trainer_state.json"),
    ),
    Mistake(
        "a teacher without any finite score",
        broken("teacher", without_numbers),
        ("the teacher has no finite score for any of the", "of step 1", "no checkpoint yet"),
    ),
    Mistake(
        "a teacher without any finite score, seen by the preflight",
        broken("teacher", without_numbers, preflight_prompts=2),
        ("The teacher has no finite score for", "of 64 tokens", "teacher_model_init_kwargs", "preflight_prompts: 0"),
    ),
    Mistake(
        "a student without a softmax",
        broken("student", without_numbers),
        ("the student's softmax is not finite in the rollout of step 1",),
    ),
    Mistake(
        "fewer prompts than a step takes",
        with_rows([ROW] * 3, per_device_train_batch_size=16),
        ("the training data has 3 prompts, but one rollout batch takes 4", "per_device_train_batch_size"),
    ),
    Mistake("a weights file without a tensor", broken("teacher", lacking), ("teacher is 'broken'", "down_proj")),
    Mistake(
        "a generation configuration cut short",
        broken("student", shorten("generation_config.json")),
        ("student is 'broken'", "generation_config.json"),
    ),
    Mistake(
        "a tokenizer cut short", broken("teacher", shorten("tokenizer.json")), ("teacher is 'broken'", "tokenizer.json")
    ),
    Mistake(
        "a field without its value",
        lambda at: ["train", *at.fields(), "--learning_rate"],
        ("--learning_rate has no value",),
    ),
    Mistake(
        "a reward that reads a column the data lacks",
        train(reward_funcs="accuracy_reward"),
        ("reward_funcs has 'accuracy_reward'", "a column 'solution' that the data does not have (it has: prompt)"),
    ),
    Mistake("no rollouts", train(num_generations=0), ("num_generations is 0", "at least 1")),
    Mistake("no step", train(max_steps=0), ("max_steps is 0", "at least 1 step")),
    Mistake("a negative learning rate", train(learning_rate=-1), ("learning_rate is -1.0", "cannot be negative")),
    Mistake("greedy rollouts", train(temperature=0), ("temperature is 0.0", "samples")),
    Mistake("a misspelt strategy", train(save_strategy="sometimes"), ("save_strategy is 'sometimes'",)),
    Mistake("a misspelt schedule", train(lr_scheduler_type="cosin"), ("lr_scheduler_type is 'cosin'",)),
    Mistake(
        "a word too many",
        lambda at: ["train", *at.fields(), "stray"],
        ("takes one value", "'stray' belongs to no field"),
    ),
    Mistake("an empty method", with_file("train", WHOLE + "method:\n"), ("run.yaml, line 5: method is empty",)),
    Mistake(
        "a folder for a configuration", lambda at: ["train", "--config", "student"], ("'student', which is a folder",)
    ),
    Mistake(
        "a comparison for a configuration",
        with_file("train", "methods: {opd: }\nlearning_rates: [1.0e-3]\n"),
        ("run.yaml is the plan of a comparison", "tropd compare run.yaml --out DIR"),
    ),
    Mistake("a misspelt folder", train(student="studnt"), ("student is 'studnt'", "Did you mean 'student'?")),
    Mistake(
        "a report that cannot be written",
        lambda at: ["check", *at.fields(), "--json", "nowhere/x.json"],
        ("--json is 'nowhere/x.json'", "no folder"),
    ),
    Mistake("a tracker that is not installed", train(report_to="mlflow"), ("mlflow", "report_to")),
    Mistake(
        "a teacher's prompt beyond its context",
        with_rows([ROW, ROW | {"teacher_prompt": "1+" * 300}]),
        ("rows.jsonl:2", "teacher_prompt has 600 tokens"),
    ),
    Mistake(
        "a teacher that is nowhere",
        lambda at: ["student", "--teacher", "nobody/nothing", "--keep-layers", "0", "--out", "pruned"],
        ("teacher is 'nobody/nothing'", "is not a model folder here and cannot be loaded"),
    ),
    Mistake(
        "a field that an other architecture has not",
        broken("student", without_checkpointing, gradient_checkpointing=True),
        ("gradient_checkpointing is True, but the student is a OpenAIGPTLMHeadModel", "gradient_checkpointing: false"),
    ),
    Mistake("a checkpoint every 0 steps", train(save_strategy="steps", save_steps=0), ("save_steps is 0", "steps")),
    Mistake(
        "a key that the model does not take",
        train(model_init_kwargs="{flux: 1}"),
        ("model_init_kwargs has 'flux'", "Remove or correct it"),
    ),
    Mistake(
        "a key that the accelerator does not take",
        with_file("check", WHOLE + "accelerator_config: {flux: 1}\n"),
        ("run.yaml, line 5: accelerator_config has 'flux'", "Remove or correct it"),
    ),
    Mistake(
        "a model beside an adapter",
        broken("teacher", beside_an_adapter),
        ("teacher is 'broken', which holds a model and an adapter", "remove adapter_config.json"),
    ),
    Mistake("no epoch", train(max_steps=None, num_train_epochs=-1), ("num_train_epochs is -1.0", "above 0")),
    Mistake("a link to nothing", linked_to_nothing, ("output_dir is 'out' and a link to 'nowhere'", "Choose another")),
    Mistake("a name with a NUL", train(output_dir="o\0t"), ("output_dir is 'o\\x00t', which contains a NUL",)),
    Mistake(
        "a folder in a file", train(output_dir="prompts.jsonl/out"), ("prompts.jsonl' is a file", "Choose another")
    ),
    Mistake("a name too long", train(output_dir="o" * 300), ("output_dir is 'ooo", "File name too long")),
    Mistake("a seed below zero", train(seed=-1), ("seed is -1", "from 0 to 4294967295")),
    Mistake("a negative norm", train(max_grad_norm=-1), ("max_grad_norm is -1.0", "0 clips nothing")),
    Mistake("a norm that is no number", train(max_grad_norm="nan"), ("max_grad_norm is nan", "0 clips nothing")),
    Mistake("an adapter of rank 0", train(use_peft=True, lora_r=0), ("lora_r is 0", "at least 1")),
    Mistake("an adapter that drops all", train(use_peft=True, lora_dropout=1.5), ("lora_dropout is 1.5", "[0, 1)")),
    Mistake("an adapter without effect", train(use_peft=True, lora_alpha=0), ("lora_alpha is 0", "lora_r")),
    Mistake(
        "a package that is not installed",
        train(deepspeed="zero3.json"),
        ("deepspeed is 'zero3.json', but the package deepspeed is not installed", "pip install deepspeed"),
    ),
    Mistake(
        "the Hub without a network",
        train(push_to_hub=True),
        ("push_to_hub is True, but the Hub cannot be written to", "push_to_hub: false"),
    ),
    Mistake(
        "the best model without an evaluation",
        with_file("train", WHOLE + "load_best_model_at_end: true\n"),
        ("run.yaml, line 5: load_best_model_at_end is True, but eval_strategy is 'no'", "eval_steps"),
    ),
    Mistake(
        "batches handed out by one process",
        with_file("train", WHOLE + "accelerator_config: {dispatch_batches: true}\n"),
        ("run.yaml, line 5: accelerator_config has dispatch_batches: True", "Remove it"),
    ),
    Mistake("steps below zero", lambda at: ["check", "--steps", "-1", *at.fields()], ("--steps is -1",)),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_mistake_gets_a_sentence_and_exit_code_2(mistake, workspace, tropd):
    outcome = tropd(*mistake.words(workspace))
    assert outcome.code == 2
    said = outcome.err.split("error: ")[-1]
    assert "error: " in outcome.err and "Traceback" not in outcome.err
    for part in mistake.says:
        assert part in said, said
    assert not (workspace.root / "out/model.safetensors").exists()


def test_too_little_disk_is_refused_before_training(workspace, tropd, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12 - 10**6, 10**6))
    outcome = tropd("train", *workspace.fields(save_strategy="steps", save_steps=1, max_steps=3))
    assert outcome.code == 2
    assert "output_dir is 'out', where 1 MB are free" in outcome.err and "save_total_limit" in outcome.err
    assert not (workspace.root / "out").exists()


def test_what_is_in_the_way_stays_as_it_was(workspace, tropd):
    assert tropd(*used_directory(workspace)).code == 2
    assert [path.name for path in (workspace.root / "out").iterdir()] == ["results.txt"]


def one_token_without_a_score(folder: Path) -> None:
    """The teacher cannot read the digit 7: it has no score for what follows one."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.embed_tokens.weight"][json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]["7"]] = (
        torch.nan
    )
    save_file(tensors, path, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))


def test_tokens_without_a_teacher_score_leave_the_loss_and_are_counted(workspace, tropd):
    one_token_without_a_score(workspace.copy("teacher", "broken"))
    rows = [
        {"prompt": "add the columns. ones: 1 2. tens: 3 4.\n"},
        {"prompt": "add the columns. ones: 4 3. tens: 1 2.\n"},
    ]
    data = workspace.jsonl("rows.jsonl", rows)
    outcome = tropd("train", *workspace.fields(teacher="broken", data=data, max_completion_length=40, max_steps=2))
    assert outcome.code == 0, outcome.err
    lines = (workspace.root / "out/metrics.jsonl").read_text().splitlines()
    logged = [json.loads(line) for line in lines]
    assert logged[0]["teacher/nonfinite_tokens"] > 0 and logged[0]["regions/num_trust"] > 0


def test_a_loss_that_is_not_finite_stops_before_its_step_and_keeps_the_checkpoint(workspace, tropd, monkeypatch):
    from tropd.objective.head import fused_loss

    plain, calls = fused_loss.reduce_losses, []

    def poisoned(*arguments):
        calls.append(1)
        return plain(*arguments) * (float("nan") if len(calls) == 2 else 1)

    monkeypatch.setattr(fused_loss, "reduce_losses", poisoned)
    outcome = tropd("train", *workspace.fields(max_steps=3, save_strategy="steps", save_steps=1))
    assert outcome.code == 2
    assert "the loss of step 2 is nan, so the step was not taken; the last checkpoint, out/checkpoint-1," in outcome.err
    assert [path.name for path in (workspace.root / "out").glob("checkpoint-*")] == ["checkpoint-1"]


def test_a_step_that_breaks_the_weights_stops_the_run(workspace, tropd):
    outcome = tropd("train", *workspace.fields(max_steps=3, save_strategy="steps", save_steps=1, learning_rate=1e30))
    assert outcome.code == 2
    assert "after step 1, so it is not saved; out has no checkpoint yet" in outcome.err
    assert not list((workspace.root / "out").glob("checkpoint-*"))


def test_a_gradient_that_is_not_finite_stops_before_its_step(workspace, tropd, monkeypatch):
    from transformers import Trainer

    monkeypatch.setattr(Trainer, "_get_grad_norm", lambda self, model, grad_norm=None: torch.tensor(float("inf")))
    outcome = tropd("train", *workspace.fields())
    assert outcome.code == 2
    assert "the gradient norm of step 1 is inf, so the step was not taken" in outcome.err


def test_debug_shows_where_a_mistake_came_from(workspace, tropd):
    with pytest.raises(ValueError, match="method is 'trop'"):
        tropd("train", "--debug", *workspace.fields(method="trop"))


def test_a_value_error_that_is_not_ours_says_how_to_find_its_place(workspace, tropd, monkeypatch):
    monkeypatch.setattr("tropd.run.configuration.resolve", lambda *arguments, **options: int("x"))
    outcome = tropd("train", *workspace.fields())
    assert outcome.code == 2 and "invalid literal for int" in outcome.err
    outcome = tropd("methods", "tropdd")
    assert "--debug" not in outcome.err, "a sentence of ours stands alone"


def test_a_defect_of_ours_keeps_its_traceback(workspace, tropd, monkeypatch):
    def defect(*arguments, **options):
        raise TypeError("ours")

    monkeypatch.setattr("tropd.run.configuration.resolve", defect)
    with pytest.raises(TypeError, match="ours"):
        tropd("train", *workspace.fields())
