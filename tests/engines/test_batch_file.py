"""What a killed run left of a file is kept batch by batch, and an edited file is left as it is."""

import json
from types import SimpleNamespace

import pytest

from tropd.evaluation.responses import ResponseLog

SETTINGS = {"seed": 1}
LINES = [json.dumps({"problem": problem, "sample": sample}) + "\n" for problem in "abc" for sample in (0, 1)]


@pytest.fixture
def opened(tmp_path):
    """A log of three problems with two samples each, in batches of two, with this text on the disk."""

    def open_(text: str) -> ResponseLog:
        (tmp_path / "log.jsonl").write_text(text)
        (tmp_path / "log.settings.json").write_text(json.dumps(SETTINGS))
        return ResponseLog(tmp_path / "log.jsonl", [SimpleNamespace(id=name) for name in "abc"], 2, SETTINGS, 2)

    return open_


@pytest.mark.parametrize("cut", ["", LINES[2], LINES[2] + LINES[3][:9], LINES[2][:9], "\0" * 9, "\0\n" + LINES[3]])
def test_a_batch_that_was_cut_short_is_written_again(opened, cut):
    log = opened("".join(LINES[:2]) + cut)
    assert log.done == 2 and log.path.read_text() == "".join(LINES[:2])
    assert list(log.missing_batches()) == [range(2, 4), range(4, 6)]


@pytest.mark.parametrize("line", ['{"problem"\n', "\n", "[]\n", "{}\n"])
def test_a_line_that_was_spoiled_within_whole_batches_costs_none_of_them(opened, tmp_path, line):
    edited = "".join([LINES[0], line, *LINES[2:]])
    with pytest.raises(ValueError, match=r"log.jsonl:2 is not the expected row: the file was edited"):
        opened(edited)
    assert (tmp_path / "log.jsonl").read_text() == edited
