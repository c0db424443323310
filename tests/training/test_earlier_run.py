"""A folder that holds something already: what is another run's is never shown, kept or loaded as the new one's."""

import json

import pytest
from peft import LoraConfig
from safetensors.torch import load_file

from tropd.report.run_folder import read_run
from tropd.training.checkpointing.checkpoints import checkpoints_in, fault_of

SAVED = {"save_final_model": True}


def names(folder):
    return [path.name for path in checkpoints_in(folder)]


def test_a_new_run_in_the_folder_of_an_earlier_one_has_nothing_of_it(train, tmp_path, caplog):
    run = tmp_path / "run"
    train(**SAVED)
    before = (run / "model.safetensors").read_bytes()
    told = {"preflight.json": '{"verdict": {}}', "report.html": "<p>the earlier run", "all_results.json": "{}"}
    for name, text in told.items():
        (run / name).write_text(text)
    train(max_steps=2, save_total_limit=1, learning_rate=1e-2)
    assert names(run) == ["checkpoint-2"] and fault_of(run / "checkpoint-2") is None
    assert read_run(run).preflight == {} and [step["step"] for step in read_run(run).steps] == [1, 2]
    assert not {"report.html", "all_results.json", "model.safetensors", "config.json"} & {p.name for p in run.iterdir()}
    aside = run / "_earlier-1"
    assert names(aside) == [f"checkpoint-{step}" for step in (1, 2, 3, 4)] and fault_of(aside / "checkpoint-4") is None
    assert (aside / "model.safetensors").read_bytes() == before and (aside / "fingerprints.json").is_file()
    assert [(run / f"{stem}-1{end}").read_text() for stem, end in (("preflight", ".json"), ("report", ".html"))] == [
        told["preflight.json"],
        told["report.html"],
    ]
    assert f"They were moved to {aside};" in caplog.text


def test_an_adapter_is_not_laid_beside_the_model_of_an_earlier_run(train, tmp_path):
    train(**SAVED)
    train(**SAVED, options={"peft_config": LoraConfig(r=2, target_modules=["q_proj"])})
    found = {path.name for path in (tmp_path / "run").glob("*.safetensors")}
    assert found == {"adapter_model.safetensors"} and not (tmp_path / "run/config.json").exists()


def test_checkpoints_behind_the_one_a_run_goes_on_from_are_of_another_course(train, tmp_path):
    run = tmp_path / "run"
    train()
    assert names(run)[-1] == "checkpoint-4"
    train(resume=1, max_steps=3, save_total_limit=1)
    assert names(run) == ["checkpoint-3"], "the latest of this course is kept"
    assert names(run / "_earlier-1") == ["checkpoint-2", "checkpoint-3", "checkpoint-4"]
    assert [step["step"] for step in read_run(run).steps] == [1, 2, 3]


def test_a_run_that_goes_on_in_another_folder_has_nothing_of_the_run_there(train, tmp_path):
    train("from")
    train("to", learning_rate=1e-2)
    trainer = train("other", max_steps=1, save_strategy="no")
    trainer.args.output_dir = str(tmp_path / "to")
    trainer.args.max_steps, trainer.args.save_strategy = 3, "steps"
    trainer.train(resume_from_checkpoint=str(tmp_path / "from/checkpoint-2"))
    assert [step["step"] for step in read_run(tmp_path / "to").steps] == [3], "not those of the run that was there"
    assert json.loads((tmp_path / "to/fingerprints.json").read_text())
    assert names(tmp_path / "to/_earlier-1")[-1] == "checkpoint-4"


def test_a_checkpoint_that_the_run_reads_is_not_moved_from_under_it(train, tmp_path):
    train()
    checkpoint = str(tmp_path / "run/checkpoint-4")

    def from_there(trainer):
        trainer.model.config._name_or_path = checkpoint

    with pytest.raises(ValueError, match=rf"^student is '{checkpoint}', one of the checkpoints in output_dir .*Choose"):
        train(prepare=from_there)
    assert names(tmp_path / "run")[-1] == "checkpoint-4"


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "adapter_model.safetensors",
        "config.json",
        "trainer_state.json",
        "run.json",
        "preflight.json",
    ],
)
def test_a_folder_by_the_name_of_a_file_that_a_run_writes_is_refused_before_training(train, tmp_path, name):
    (tmp_path / "run" / name).mkdir(parents=True)
    with pytest.raises(
        ValueError, match=rf"^output_dir is .*and '{name}' in it is no file, though a run writes a file"
    ):
        train(**SAVED)


@pytest.mark.parametrize("name", ["rollouts", ".writing", "checkpoint-2"])
def test_a_file_by_the_name_of_a_folder_that_a_run_writes_is_refused_before_training(train, tmp_path, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("mine")
    with pytest.raises(ValueError, match=rf"^output_dir is .*and '{name}' in it is no folder, though"):
        train(**SAVED)


def test_a_model_saved_by_hand_is_looked_at_alike(train, tmp_path):
    trainer = train(max_steps=1, save_strategy="no")
    (tmp_path / "hand/model.safetensors").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"^output_dir is .*hand.*'model.safetensors' in it is no file"):
        trainer.save_model(str(tmp_path / "hand"))
    trainer.save_model(str(tmp_path / "other"))
    assert load_file(tmp_path / "other/model.safetensors")
