"""Each format is read whole, each row knows its place, and a file that cannot be read is refused in a sentence."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tropd.data import load_prompts

ROWS = [{"prompt": "one", "answer": 1}, {"prompt": "two", "answer": 2}]


def parquet(name, rows):
    pq.write_table(pa.Table.from_pylist(rows), name)
    return name


# ---------------------------------------------------------------------- what is read


def test_json_lines_are_placed_at_their_physical_lines(write):
    data = load_prompts(write("a.jsonl", '\ufeff{"prompt": "one"}\r\n\r\n  \n{"prompt": "two\\nlines"}'))
    assert data.places == ("a.jsonl:1", "a.jsonl:4")
    assert data.dataset["prompt"][:] == ["one", "two\nlines"]


def test_a_unicode_line_separator_ends_no_line(write):
    data = load_prompts(write("a.jsonl", '{"prompt": "one\u2028still one"}\n{"prompt": "two"}\n'))
    assert data.places == ("a.jsonl:1", "a.jsonl:2")


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz", "A.JSONL.GZ"])
def test_json_is_read_from_gzip(write, name):
    content = gzip.compress("\n".join(map(json.dumps, ROWS)).encode())
    assert load_prompts(write(name, content)).rows(2) == ROWS


def test_a_json_file_may_be_an_array_placed_at_the_lines_where_its_items_start(write):
    data = load_prompts(write("a.json", json.dumps(ROWS, indent=2)))
    assert data.places == ("a.json:2 (row 1)", "a.json:6 (row 2)")
    assert data.rows(2) == ROWS


def test_items_of_an_array_on_one_line_are_told_apart_by_their_row(write):
    data = load_prompts(write("a.json", "\n" + json.dumps(ROWS)))
    assert data.places == ("a.json:2 (row 1)", "a.json:2 (row 2)")


def test_a_json_file_may_be_json_lines(write):
    assert load_prompts(write("a.json", ROWS)).places == ("a.json:1", "a.json:2")


@pytest.mark.parametrize("content", ["[]", " [\n]\n", "\ufeff[ ]"])
def test_an_array_may_be_empty(write, refused, content):
    assert "has no rows" in refused(write("a.json", content))


def test_csv_lines_may_end_as_on_an_old_macintosh(write):
    data = load_prompts(write("a.csv", 'prompt\rone\r"two\rlines"\rthree'))
    assert data.dataset["prompt"][:] == ["one", "two\rlines", "three"]
    assert data.places == ("a.csv:2", "a.csv:3", "a.csv:5")


def test_csv_rows_are_placed_at_the_lines_where_they_start(write):
    data = load_prompts(write("a.csv", 'prompt,answer\n"two\nlines",1\n\nthree,\n'))
    assert data.places == ("a.csv:2", "a.csv:5")
    assert data.rows(2) == [{"prompt": "two\nlines", "answer": "1"}, {"prompt": "three", "answer": None}]


def test_a_csv_field_may_be_longer_than_the_default_of_the_csv_module(write):
    data = load_prompts(write("a.csv", "prompt\n" + "x" * 200_000))
    assert len(data.rows(1)[0]["prompt"]) == 200_000


def test_parquet_rows_are_counted_from_one(write):
    write("unused.jsonl", [])
    data = load_prompts(parquet("a.parquet", ROWS))
    assert data.places == ("a.parquet: row 1", "a.parquet: row 2")
    assert data.rows(5) == ROWS


# ---------------------------------------------------------------------- what is refused


def test_a_line_that_is_not_json_is_named_with_its_column(write, refused):
    message = refused(write("a.jsonl", '{"prompt": "one"}\n\n{"prompt": }\n'))
    assert "1 of 2 rows cannot be used:\n  a.jsonl:3: not JSON: Expecting value at column 12" in message


@pytest.mark.parametrize("line", ["[1, 2]", '"text"', "3", "null"])
def test_a_line_that_is_no_object_is_named(write, refused, line):
    message = refused(write("a.jsonl", f'{{"prompt": "one"}}\n{line}\n'))
    assert "a.jsonl:2: the row is not an object" in message


def test_an_item_of_an_array_that_is_no_object_is_named(write, refused):
    assert "a.json:2 (row 2): the row is not an object (7)" in refused(write("a.json", '[{"prompt": "one"},\n7]'))


def test_an_array_that_is_not_json_is_refused_at_its_line(write, refused):
    message = refused(write("a.json", '[{"prompt": "one"},\n{"prompt" "two"}]'))
    assert message.startswith("a.json:2 is not JSON: Expecting ':' delimiter at column 11. Correct the array there")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ('[{"prompt": "one"}', ":1 is not JSON: Expecting ',' delimiter at column 19"),
        ('[{"prompt": "one"}\n{"prompt": "two"}]', ":2 is not JSON: Expecting ',' delimiter at column 1"),
        ('[{"prompt": "one"},\n]', ":2 is not JSON: Expecting value at column 1"),
        ('[{"prompt": "one"}]\n\n{"prompt": "two"}', ":3 is not JSON: Extra data at column 1"),
        ("[]\n]", ":2 is not JSON: Extra data at column 1"),
    ],
)
def test_what_is_wrong_between_the_items_of_an_array_is_said_as_json_says_it(write, refused, content, why):
    assert refused(write("a.json", content)).startswith(f"a.json{why}")


def test_a_csv_row_of_another_width_is_named(write, refused):
    message = refused(write("a.csv", "prompt,answer\none,1\ntwo\n"))
    assert "a.csv:3: 1 of the 2 fields in the header (['two'])" in message


def test_a_csv_quote_that_never_closes_is_refused(write, refused):
    assert "a.csv:2 is not CSV: unexpected end of data" in refused(write("a.csv", 'prompt\n"one\n'))


@pytest.mark.parametrize("header", ["prompt,prompt", "prompt,"])
def test_a_csv_header_needs_a_name_for_each_column(write, refused, header):
    assert "a.csv:1 is a header with an empty or repeated" in refused(write("a.csv", f"{header}\none,1\n"))


@pytest.mark.parametrize(
    ("name", "content"), [("a.jsonl", "\n \n"), ("a.json", ""), ("a.json", "[]"), ("a.csv", ""), ("a.csv", "prompt\n")]
)
def test_an_empty_file_is_refused(write, refused, name, content):
    assert refused(write(name, content)) == f"{name} is empty: it has no rows. Give a source with at least one row."


def test_an_unknown_extension_is_answered_with_the_known_ones(write, refused):
    message = refused(write("a.txt", "one"))
    assert "unknown extension (.txt). Known are .jsonl, .json, .csv" in message
    assert "(none.gz)" in refused(write("a.gz", b""))


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_file_that_is_not_utf8_is_refused_at_its_line(write, refused, name):
    message = refused(write(name, "prompt\ncaf\xe9\n".encode("latin1")))
    assert message.startswith(f"{name}:2 is not UTF-8 (byte 0xe9). Convert the file first")


def test_a_truncated_gzip_file_is_refused(write, refused):
    content = gzip.compress(b'{"prompt": "one"}\n' * 100)
    assert "a.jsonl.gz is not a complete gzip file" in refused(write("a.jsonl.gz", content[:-12]))
    assert "b.jsonl.gz is not a complete gzip file" in refused(write("b.jsonl.gz", b"plain"))


def test_a_truncated_parquet_file_is_refused(write, refused, tmp_path):
    write("empty.parquet", b"")
    whole = tmp_path / parquet("a.parquet", ROWS)
    whole.write_bytes(whole.read_bytes()[:-20])
    assert "a.parquet is not a complete Parquet file" in refused("a.parquet")
    assert "empty.parquet is not a complete Parquet file" in refused("empty.parquet")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ('{"prompt": "a", "prompt": "b"}', "gives 'prompt' twice"),
        ('{"prompt": "a", "x": {"y": 1, "y": 2}}', "gives 'y' twice"),
        ('{"prompt": "a", "x": ' + "[" * 30_000 + "]" * 30_000 + "}", "is nested too deeply"),
    ],
    ids=["twice", "twice inside", "deep"],
)
def test_what_json_would_take_without_a_word_is_refused(write, refused, content, why):
    assert f"a.jsonl:2: it {why}" in refused(write("a.jsonl", '{"prompt": "first"}\n' + content + "\n"))
    assert why in refused(write("a.json", f"[{content}]"))
