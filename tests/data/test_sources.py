"""A source is a file, a saved data set, several of them, or a name on the Hub; anything else gets a sentence."""

import os

import pytest
from datasets import Dataset, DatasetDict

from tropd.data import has_splits, load_prompts

ROWS = [{"prompt": "one"}, {"prompt": "two"}]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_saved_data_set_is_loaded(here):
    Dataset.from_list(ROWS).save_to_disk("saved")
    data = load_prompts(here / "saved")
    assert data.rows(2) == ROWS
    assert data.places == (f"{here}/saved: row 1", f"{here}/saved: row 2")


def test_a_split_of_a_saved_data_set_is_chosen(here):
    DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS[:1])).save_to_disk("saved")
    assert len(load_prompts("saved")) == 2
    assert load_prompts("saved", split="test").places == ("saved (test): row 1",)


def test_a_split_that_is_not_there_is_answered_with_those_that_are(here, refused):
    DatasetDict(train=Dataset.from_list(ROWS)).save_to_disk("saved")
    message = refused("saved", split="trian")
    assert message == "saved has no split 'trian' (it has: train). Did you mean 'train'? Set split='train'."


def test_a_file_has_no_splits(write, refused):
    assert "split is 'test'" in refused(write("a.jsonl", ROWS), split="test")


def test_only_what_is_not_a_file_has_splits(write, here):
    name = write("a.jsonl", ROWS)
    Dataset.from_list(ROWS).save_to_disk("saved")
    assert [has_splits(source) for source in (name, [name, name], "saved", [name, "saved"], "organisation/name")] == [
        False,
        False,
        True,
        True,
        True,
    ]


def test_a_folder_that_holds_no_saved_data_set_is_answered_with_its_files(write, refused):
    write("a.jsonl", ROWS)
    message = refused(".")
    assert message == ". is a folder, but Dataset.save_to_disk did not write it. Give its files instead: a.jsonl."


def test_a_damaged_saved_data_set_is_refused(here, refused):
    Dataset.from_list(ROWS).save_to_disk("saved")
    next((here / "saved").glob("*.arrow")).unlink()
    assert "saved is not a complete saved data set" in refused("saved")


def test_several_files_are_put_together_in_their_order(write):
    data = load_prompts([write("a.jsonl", ROWS), write("b.csv", "prompt,answer\nthree,3\n")])
    assert data.places == ("a.jsonl:1", "a.jsonl:2", "b.csv:2")
    assert data.rows(3)[2] == {"prompt": "three", "answer": "3"}
    assert data.source == "a.jsonl, b.csv"


def test_no_files_at_all_are_refused(refused):
    assert "the source is an empty list" in refused([])


def test_a_missing_file_is_answered_with_the_nearest_name(write, refused):
    write("prompts.jsonl", ROWS)
    message = refused("promts.jsonl")
    assert message == "there is no file or folder promts.jsonl. Did you mean 'prompts.jsonl'? Correct the path."


def test_a_missing_folder_is_answered_with_the_nearest_name(here, refused):
    (here / "data").mkdir()
    assert "Did you mean 'data'?" in refused("dta/prompts.jsonl")


@pytest.mark.parametrize("name", ["some-data", "organisation/some-data"])
def test_a_name_that_the_hub_does_not_give_is_refused(here, refused, name):
    message = refused(name)
    assert message.startswith(f"'{name}' is not a file or folder here, and its split 'train' cannot be loaded")
    assert message.endswith("Correct the path, or the name and split.")


def test_a_name_is_loaded_from_the_hub(here, monkeypatch):
    asked = []
    monkeypatch.setattr("datasets.load_dataset", lambda *a, **k: asked.append((a, k)) or Dataset.from_list(ROWS))
    data = load_prompts("organisation/some-data", split="test")
    assert asked == [(("organisation/some-data",), {"split": "test"})]
    assert data.places[1] == "organisation/some-data (test): row 2"


def test_what_is_there_and_no_file_is_said_to_be_that(here, refused):
    os.mkfifo("pipe.jsonl")
    os.symlink("loop.jsonl", "loop.jsonl")
    os.symlink("nowhere.jsonl", "lost.jsonl")
    os.symlink(os.devnull, "device.jsonl")
    for name in ("pipe.jsonl", "device.jsonl"):
        assert f"{name} is not a regular file: data are read more than once" in refused(name)
    assert refused("loop.jsonl").startswith("loop.jsonl is a link to 'loop.jsonl', whose target does not exist.")
    assert refused("lost.jsonl").startswith("lost.jsonl is a link to 'nowhere.jsonl', whose target does not exist.")
