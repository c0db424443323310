"""`tropd check`: what a user reads of a good pair, of the same model twice, and of pairs that cannot work."""

import json

import pytest

from tropd.comparison.other_ending import write_with_ending


def check(**changes):
    return {"output_dir": None, "preflight_prompts": 4, "max_completion_length": 72, **changes}


def test_a_good_pair_is_described_and_nothing_is_left_behind(workspace, tropd):
    before = sorted(path.name for path in workspace.root.iterdir())
    outcome = tropd("check", *workspace.fields(**check()), "--json", "found.json")
    assert outcome.code == 0, outcome.err
    for words in ("trust fraction", "verdict", "memory of one process", "time (from measured rates)", "disk"):
        assert words in outcome.out
    assert "Both tokenizers give the student's 191 tokens the same ids" in outcome.out
    found = json.loads((workspace.root / "found.json").read_text())
    assert found["verdict"]["kind"] != "will_not_work" and 0.8 < found["measurement"]["trust_fraction"] < 1
    assert sorted(path.name for path in workspace.root.iterdir()) == sorted([*before, "found.json"])


def test_the_same_model_twice_has_nothing_to_learn(workspace, tropd):
    outcome = tropd("check", *workspace.fields(**check(teacher="student")), "--json", "found.json")
    assert outcome.code == 0
    found = json.loads((workspace.root / "found.json").read_text())
    assert found["verdict"]["kind"] == "identical"
    assert found["measurement"]["trust_fraction"] == pytest.approx(1.0, abs=1e-5)


def test_steps_are_taken_and_thrown_away(workspace, tropd):
    outcome = tropd("check", "--steps", "2", *workspace.fields(**check(max_steps=50, preflight_prompts=2)))
    assert outcome.code == 0
    assert "step 1: " in outcome.out and "step 2: " in outcome.out and "step 3" not in outcome.out
    assert "peak memory" in outcome.out
    assert not (workspace.root / "out").exists() and not (workspace.root / "(not named)").exists()


def test_an_output_directory_that_is_in_use_does_not_matter_to_a_check(workspace, tropd):
    (workspace.root / "out").mkdir()
    workspace.text("out/results.txt", "precious")
    assert tropd("check", *workspace.fields(**check(output_dir="out", preflight_prompts=0))).code == 0


def test_without_prompts_no_model_is_asked_and_no_time_is_promised(workspace, tropd):
    outcome = tropd("check", *workspace.fields(**check(preflight_prompts=0)))
    assert outcome.code == 0
    assert "memory of one process" in outcome.out and "time (" not in outcome.out and "verdict" not in outcome.out


def test_a_sharded_student_is_looked_at_when_training_begins(workspace, tropd, monkeypatch):
    monkeypatch.setattr("tropd.cli.preflight.is_sharded", lambda trainer: True)
    blind = tropd("check", *workspace.fields(**check(preflight_prompts=2)))
    assert blind.code == 0
    assert "without --steps 1 no prompts are scored" in blind.err and "verdict" not in blind.out
    seen = tropd("check", "--steps", "1", *workspace.fields(**check(preflight_prompts=2)))
    assert "verdict" in seen.out and "step 1: " in seen.out
    assert tropd("train", *workspace.fields(preflight_prompts=2)).code == 0
    assert (workspace.root / "out/preflight.json").is_file()


def test_a_pair_whose_endings_differ_is_never_called_safe_and_training_says_what_it_does(workspace, tropd):
    write_with_ending("teacher", "<unk>", workspace.root / "other")
    kinds, found = {}, workspace.root / "found.json"
    for ending in ("one_action", "as_given"):
        outcome = tropd("check", *workspace.fields(**check(teacher="other", ending=ending)), "--json", "found.json")
        said = " ".join(outcome.out.split())
        assert outcome.code == 0 and "plain OPD is safe" not in said
        assert "the student ends with '<eos>' (2) and the teacher with '<unk>' (3)" in said
        kinds[ending] = json.loads(found.read_text())["verdict"]["kind"]
        assert ("--method opd --ending one_action" in said) is (ending == "as_given"), "what follows works"
    assert kinds == {"one_action": "endings", "as_given": "endings_apart"}
    outcome = tropd("train", *workspace.fields(teacher="other"))
    said = " ".join((outcome.out + outcome.err).split())
    assert "the teacher ends with '<unk>' (3). They are scored as one action" in said
    assert json.loads((workspace.root / "out/run.json").read_text())["endings"]["stop_ids"] == [2, 3]
