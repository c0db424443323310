"""Rows are read a few hundred at a time, and where one chunk ends and the next begins changes nothing."""

import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from tropd.data import files, load_prompts, prompts, sources

USER = {"role": "user", "content": "one"}
FAR = files.ROWS_AT_ONCE * 2 + 10
"""So many rows between two are enough to put another chunk between their chunks."""


def far_apart(first, last, between=None):
    """Rows of which the first and the last have fields of their own."""
    middle = [{"prompt": "one"} | (between or {})] * FAR
    return [{"prompt": "one"} | first, *middle, {"prompt": "one"} | last]


LAST = f"a.jsonl:{FAR + 2}"

# ---------------------------------------------------------------------- rows far apart


def test_bad_rows_far_apart_are_refused_together(write, refused):
    message = refused(write("a.jsonl", far_apart({"prompt": ""}, {"teacher_response": []})))
    assert message.startswith(f"2 of {FAR + 2} rows cannot be used:")
    assert "a.jsonl:1: prompt is empty" in message and f"{LAST}: teacher_response has no tokens" in message


def test_a_form_that_changes_far_behind_is_named(write, refused):
    message = refused(write("a.jsonl", far_apart({"teacher_response": "1"}, {"teacher_response": [3]})))
    assert f"{LAST}: teacher_response changes its form to token ids; it is text in a.jsonl:1" in message


@pytest.mark.parametrize(
    ("first", "last"),
    [(1, "1"), ("1", 1), ([1], ["a"]), ({"a": 1}, {"a": "x"}), (2**53 + 1, 0.5), (0.5, 2**53 + 1), (1, True)],
)
def test_types_that_do_not_go_together_are_noted_at_the_row_far_behind(write, first, last):
    data = load_prompts(write("a.jsonl", far_apart({"extra": first}, {"extra": last})))
    assert data.dataset.column_names == ["prompt"]
    assert data.notes == (
        f"column 'extra' is {last!r} in {LAST}, which does not match the types of earlier rows. The column is "
        "excluded; to keep it, give it one type, or JSON as text.",
    )


def test_a_value_without_a_type_is_noted_far_behind(write):
    data = load_prompts(write("a.jsonl", far_apart({"extra": [1]}, {"extra": [1, "a"]})))
    assert f"in {LAST}, which has no type that Arrow supports" in data.notes[0]


def test_messages_whose_other_fields_disagree_far_apart_stay_as_written(write):
    rows = far_apart({"prompt": [USER | {"weight": 1}]}, {"prompt": [USER | {"weight": "high"}]}, {"prompt": [USER]})
    assert load_prompts(write("a.jsonl", rows)).rows(len(rows)) == rows


@pytest.mark.parametrize(
    ("first", "last"),
    [
        (None, 3),
        (3, None),
        (1, 0.5),
        (0.5, 2**53),
        ([], [3]),
        ([3], [2**40]),
        ([3], [0.5]),
        ({"a": 1}, {"b": [{"c": "x"}]}),
        ([{"a": None}], [{"a": {"b": 0.5}}, None]),
        ({"a": 1}, {"a": 0.5, "b": None}),
    ],
)
def test_types_that_go_together_are_what_arrow_makes_of_them_at_once(write, first, last):
    data = load_prompts(write("a.jsonl", far_apart({"extra": first}, {"extra": last})))
    at_once = pa.array([first, None, last])
    assert data.dataset.select([0, 1, FAR + 1])["extra"][:] == at_once.to_pylist() and not data.notes


def test_a_key_that_only_the_last_row_has_is_none_before(write):
    data = load_prompts(write("a.jsonl", far_apart({}, {"late": "x"})))
    assert data.dataset["late"][:] == [None] * (FAR + 1) + ["x"]


# ---------------------------------------------------------------------- one result for all sizes of a chunk

ROWS = [
    {"prompt": "one", "teacher_response": None, "a": None, "b": [], "c": {"x": 1}, "d": 1},
    {"prompt": "two", "teacher_response": [3, 2**31 - 1], "a": 1, "b": [2**31], "d": 2},
    {"prompt": "three", "a": 2.5, "c": {"y": [1]}, "d": "2"},
    {"prompt": "four", "teacher_response": [5], "b": [7], "late": True, "d": 2},
    {"prompt": "five", "c": {"x": None, "y": [2]}, "e": ["a", None], "d": 2},
]


def loaded(monkeypatch, source, size):
    for module in (files, prompts, sources):
        monkeypatch.setattr(module, "ROWS_AT_ONCE", size)
    data = load_prompts(source)
    return data.dataset.to_list(), data.dataset.features, data.places, data.notes


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_the_size_of_a_chunk_changes_nothing(write, monkeypatch, size):
    name = write("a.jsonl", ROWS)
    assert loaded(monkeypatch, name, size) == loaded(monkeypatch, name, 100)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_tables_are_read_in_chunks_of_any_size(write, monkeypatch, size):
    write("a.jsonl", [])
    table = pa.table({"prompt": [f"prompt {row}" for row in range(5)], "n": [[row] for row in range(5)]})
    pq.write_table(table, "a.parquet")
    Dataset(table).select([4, 2, 0]).save_to_disk("saved")
    for source, numbers in (("a.parquet", range(5)), ("saved", [4, 2, 0])):
        rows, _, places, _ = loaded(monkeypatch, source, size)
        assert rows == [{"prompt": f"prompt {number}", "n": [number]} for number in numbers]
        assert places == tuple(f"{source}: row {row}" for row in range(1, len(numbers) + 1))


# ---------------------------------------------------------------------- memory


def test_token_ids_take_four_bytes(write):
    data = load_prompts(write("a.jsonl", far_apart({"teacher_response": [3] * 1_000}, {"teacher_response": [4]})))
    assert data.dataset.data["teacher_response"].type == pa.list_(pa.int32())


def test_only_a_few_rows_are_python_objects_at_once(write):
    name = write("a.jsonl", [{"prompt": "one", "teacher_response": list(range(1_000, 1_500))}] * 2_000)
    load_prompts(name, limit=1)
    tracemalloc.start()
    try:
        data = load_prompts(name)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Two chunks of 256 rows with 500 ids of 36 bytes are 9 MB; all rows together would be 36 MB.
    assert len(data) == 2_000 and peak < 14e6


def test_the_same_content_has_the_same_fingerprint(write):
    write("b.jsonl", far_apart({"n": 1}, {"n": 2}))
    write("c.jsonl", far_apart({"n": 1}, {"n": 3}))
    first, again, other = (load_prompts(name).dataset._fingerprint for name in ("b.jsonl", "b.jsonl", "c.jsonl"))
    assert first == again != other
