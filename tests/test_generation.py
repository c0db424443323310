"""Teacher responses: what a line holds, and that a file cut anywhere is completed to the same bytes."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig

import shipped
from shipped import teacher_path
from tropd.engines.transformers import TransformersWriter
from tropd.generation import (
    GenerationSettings,
    ResponseFile,
    Summary,
    check_fit,
    generate,
    read_prompts,
    summarise,
)
from tropd.models.files import ModelFiles, read_model_files
from tropd.proving_ground.domains import grade
from tropd.rollout.guidance import response_ids
from tropd.teacher.context import TeacherContexts

ROWS = [row | {"number": n} for n, row in enumerate(shipped.rows(5))]
PLACES = [f"prompts.jsonl:{n + 1}" for n in range(len(ROWS))]
SETTINGS = {"max_new_tokens": 8, "batch_size": 2}
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %};{% endif %}"


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def teacher():
    return AutoModelForCausalLM.from_pretrained(teacher_path())


@pytest.fixture(scope="module")
def files():
    return read_model_files(teacher_path(), role="teacher")


@pytest.fixture(scope="module")
def tokenizer(files):
    return files.tokenizer


@pytest.fixture
def write(teacher, files, tmp_path):
    """Write, or go on with, a file in `tmp_path`; returns it and how many responses were added."""

    def written(name="responses.jsonl", rows=ROWS, model=teacher, **changes):
        settings = GenerationSettings(**({"teacher": "models/teacher"} | SETTINGS | changes))
        file = ResponseFile(tmp_path / name, read_prompts(rows, PLACES[: len(rows)], files.tokenizer), settings)
        added = []
        generate(
            TransformersWriter(model), replace(files, generation_config=model.generation_config), file, added.append
        )
        return file, sum(added)

    return written


def lines(file):
    return [json.loads(line) for line in file.path.read_text().splitlines()]


def test_a_line_holds_the_row_and_the_response(write, files, tokenizer):
    file, added = write(max_new_tokens=100)
    assert added == file.done == file.total == 5
    records = lines(file)
    eos = files.eos_ids
    for row, record in zip(ROWS, records, strict=True):
        assert list(record) == ["prompt", "number", *list(record)[2:]]
        assert {name: record[name] for name in row} == row
        ids = record["teacher_response"]
        assert ids and not set(ids) & set(eos)
        assert record["teacher_response_text"] == tokenizer.decode(ids)
        prompt_ids = tokenizer(row["prompt"])["input_ids"]
        assert response_ids(ids, row["prompt"], prompt_ids, tokenizer, eos) == ids
    assert all(record["teacher_response_ended"] == (len(record["teacher_response"]) < 100) for record in records)
    right = [grade("mathematics", record["prompt"], record["teacher_response_text"]).correct for record in records]
    assert sum(right) >= 4, "this teacher can add"


def test_the_summary_counts_what_is_on_the_disk(write):
    file, _ = write(max_new_tokens=30)
    records = lines(file)
    tokens = sum(len(record["teacher_response"]) for record in records)
    ended = sum(record["teacher_response_ended"] for record in records)
    assert 0 < ended < 5
    assert summarise(file) == Summary(responses=5, tokens=tokens, ended=ended, empty=0)


def test_a_file_cut_anywhere_is_completed_to_the_same_bytes(write):
    file, _ = write("whole.jsonl")
    whole = file.path.read_bytes()
    ends = [place + 1 for place, byte in enumerate(whole) if byte == ord("\n")]
    settings = file.path.with_name("whole.jsonl.settings.json").read_bytes()
    kept_of_cut = {0: 0, ends[0]: 0, ends[1] - 1: 0, ends[1]: 2, ends[1] + 7: 2, ends[3]: 4, len(whole): 5}
    for place, kept in kept_of_cut.items():
        cut = file.path.with_name("cut.jsonl")
        cut.write_bytes(whole[:place])
        cut.with_name("cut.jsonl.settings.json").write_bytes(settings)
        _, added = write("cut.jsonl")
        assert cut.read_bytes() == whole and added == 5 - kept


def test_a_tail_of_zeros_after_a_power_cut_is_generated_again(write):
    file, _ = write()
    whole = file.path.read_bytes()
    file.path.write_bytes(whole[:-60] + bytes(60))
    assert write()[1] == 1
    assert file.path.read_bytes() == whole


def test_the_seed_decides_the_file_and_the_callers_generator_is_left_alone(write):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, _ = write("first.jsonl")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert write("second.jsonl")[0].path.read_bytes() == first.path.read_bytes()
    # The first digits are decided by the problem; later the teacher chooses among orders.
    longer = [write(f"{seed}.jsonl", seed=seed, max_new_tokens=40)[0].path.read_bytes() for seed in (42, 43)]
    assert longer[0] != longer[1]


@pytest.mark.parametrize("batch_size", [1, 3, 10])
def test_the_batch_size_changes_no_response(write, batch_size):
    """The teacher is in float32, where another padding moves its logits too little to move a draw here."""
    settings = {"responses_per_prompt": 2, "max_new_tokens": 40}
    whole, _ = write("whole.jsonl", batch_size=4, **settings)
    assert len({tuple(record["teacher_response"]) for record in lines(whole)}) > 5, "responses to a prompt differ"
    assert lines(write(f"{batch_size}.jsonl", batch_size=batch_size, **settings)[0]) == lines(whole)


def test_any_whole_number_is_a_seed(write):
    assert write(seed=-1)[1] == 5


def test_several_responses_to_a_prompt_lie_side_by_side(write):
    file, added = write(responses_per_prompt=3, max_new_tokens=40, batch_size=8)
    assert added == 15
    records = lines(file)
    assert [record["number"] for record in records] == [n for n in range(5) for _ in range(3)]
    assert len({tuple(record["teacher_response"]) for record in records}) > 5
    assert write(responses_per_prompt=3, max_new_tokens=40, batch_size=8)[1] == 0


def test_messages_and_teacher_prompts_are_what_the_teacher_reads(tokenizer):
    templated = AutoTokenizer.from_pretrained(teacher_path(), chat_template=TEMPLATE)
    rows = [
        {"prompt": [{"role": "user", "content": "1+2="}], "teacher_prompt": None},
        {"prompt": [{"role": "user", "content": "1+2="}], "teacher_prompt": [{"role": "user", "content": "1+2=3,"}]},
    ]
    prompts = read_prompts(rows, PLACES[:2], templated)
    assert [tokenizer.decode(context) for context in prompts.contexts] == ["1 + 2 =;", "1 + 2 = 3,;"]
    with pytest.raises(ValueError, match=r"prompts.jsonl:1: the prompt is a list of messages.*no chat template"):
        read_prompts(rows, PLACES[:2], tokenizer)


def test_prompts_of_all_kinds_are_tokenised_together_as_the_trainer_does_one_by_one():
    template = "{{ bos_token }}" + TEMPLATE + "{% if shout %}!{% endif %}"
    templated = AutoTokenizer.from_pretrained(teacher_path(), chat_template=template)
    rows = [
        {"prompt": "1+2="},
        {"prompt": [{"role": "user", "content": "1+2="}]},
        {"prompt": "3+4=", "teacher_prompt": [{"role": "user", "content": "5+6="}]},
        {"prompt": [{"role": "user", "content": "7+8="}], "teacher_prompt": "9+1="},
    ]
    for kwargs in ({}, {"shout": True}):
        one_by_one = TeacherContexts(templated, template_kwargs=kwargs, as_student=False).of(rows, [[]] * 4)
        assert read_prompts(rows, PLACES[:4], templated, kwargs).contexts == one_by_one


def test_messages_that_the_chat_template_refuses_are_named():
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE
    strict = AutoTokenizer.from_pretrained(teacher_path(), chat_template=template)
    user = {"role": "user", "content": "1+2="}
    rows = [{"prompt": [user]}, {"prompt": [{"role": "system", "content": "add"}, user]}]
    with pytest.raises(
        ValueError, match=r"1 of 2 rows(?s:.*)prompts.jsonl:2: the teacher's chat template.*no system role"
    ):
        read_prompts(rows, PLACES[:2], strict)


def test_an_empty_response_is_null_and_counted(write, teacher):
    silent = AutoModelForCausalLM.from_pretrained(teacher_path())
    silent.generation_config.eos_token_id = list(range(teacher.config.vocab_size))
    file, _ = write(model=silent)
    assert [record["teacher_response"] for record in lines(file)] == [None] * 5
    assert all(record["teacher_response_ended"] for record in lines(file))
    assert summarise(file) == Summary(responses=5, tokens=0, ended=5, empty=5)


def test_a_file_begun_otherwise_is_refused_with_what_changed(write):
    file, _ = write()
    with pytest.raises(ValueError, match=r"temperature was 1.0 and is 0.5; seed was 42 and is 7\. Use the earlier"):
        write(temperature=0.5, seed=7)
    with pytest.raises(ValueError, match=r"num_prompts was 5 and is 4; prompts_sha256 was"):
        write(rows=ROWS[:4])
    with pytest.raises(ValueError, match="prompts_sha256 was"):
        write(rows=[*ROWS[:4], {"prompt": "81+1=", "number": 4}])
    assert len(lines(file)) == 5


def test_settings_may_change_while_nothing_is_written(write):
    file, _ = write()
    file.path.unlink()
    assert write(seed=7)[1] == 5


def test_a_file_of_another_maker_is_not_touched(write, tmp_path):
    (tmp_path / "responses.jsonl").write_text("mine\n")
    with pytest.raises(ValueError, match=r"exists without responses.jsonl.settings.json"):
        write()
    assert (tmp_path / "responses.jsonl").read_text() == "mine\n"


@pytest.mark.parametrize("edit", [lambda lines: lines[1:], sorted, lambda lines: [*lines, lines[0]]])
def test_an_edited_file_is_not_continued(write, edit):
    rows = list(reversed(ROWS))
    file, _ = write(rows=rows)
    edited = "".join(edit(file.path.read_text().splitlines(keepends=True)))
    file.path.write_text(edited)
    with pytest.raises(ValueError, match="is not the expected row"):
        write(rows=rows)
    assert file.path.read_text() == edited


def test_two_processes_do_not_write_one_file(write, tokenizer):
    file, _ = write()
    late = ResponseFile(file.path, file.prompts, file.settings)
    with file.path.open("a") as other:
        other.write("{}\n")
    with pytest.raises(ValueError, match="another process"):
        late.append([{}])


def test_prompts_that_do_not_fit_are_named(files, tokenizer):
    rows = [{"prompt": "1+" * length + "1="} for length in (3, 228, 238)]
    prompts = read_prompts(rows, PLACES[:3], tokenizer)
    settings = GenerationSettings("models/teacher", max_new_tokens=56)
    named = r"2 of 3 rows(?s:.*)prompts.jsonl:2: the prompt has 458 tokens\n.*jsonl:3.* 478 (?s:.*)to at most 34, or"
    with pytest.raises(ValueError, match=named):
        check_fit(prompts, settings, files)
    check_fit(prompts, GenerationSettings("models/teacher", max_new_tokens=34), files)
    most = r"max_new_tokens is 512, but the teacher's context has 512 tokens.* has 478\. Set it to at most 34\."
    with pytest.raises(ValueError, match=most):
        check_fit(prompts, GenerationSettings("models/teacher"), files)
    with pytest.raises(ValueError, match=r"the longest prompt has 518\. Lower it\."):
        check_fit(read_prompts([{"prompt": "1+" * 258 + "1="}], PLACES[:1], tokenizer), settings, files)


def test_the_context_is_that_of_the_check_rope_scaling_included(files, tokenizer):
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256, "rope_theta": 1e4}
    rows = len(tokenizer)
    scaled = replace(files, config=LlamaConfig(vocab_size=rows, max_position_embeddings=256, rope_parameters=rope))
    assert scaled.context_length == 1024
    check_fit(read_prompts(ROWS, PLACES, tokenizer), GenerationSettings("models/teacher"), scaled)


def test_a_teacher_that_cannot_end_is_refused(files, tokenizer):
    endless = AutoTokenizer.from_pretrained(teacher_path())
    endless.eos_token = None
    without = ModelFiles("models/teacher", endless, files.config, GenerationConfig())
    with pytest.raises(ValueError, match="no response would ever end"):
        check_fit(read_prompts(ROWS, PLACES, tokenizer), GenerationSettings("models/teacher"), without)


def test_a_tokenizer_of_another_model_is_refused(files, tokenizer):
    prompts = read_prompts(ROWS, PLACES, tokenizer)
    prompts.contexts[1][0] = 5000
    with pytest.raises(ValueError, match=r"token id 5000.*do not match"):
        check_fit(prompts, GenerationSettings("models/teacher"), files)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "no rows"),
        ([{"prompt": ""}], "prompts.jsonl:1: the prompt is empty"),
        ([{"prompt": "1+1=", "teacher_response": "2"}], "a column teacher_response, which would be overwritten"),
    ],
)
def test_rows_that_cannot_be_answered_are_refused(rows, said, tokenizer):
    with pytest.raises(ValueError, match=said):
        read_prompts(rows, PLACES[: len(rows)], tokenizer)


@pytest.mark.parametrize("value", [float("nan"), b"bytes", {1, 2}])
def test_a_value_that_json_cannot_carry_is_named_before_anything_is_written(value, write, tmp_path):
    with pytest.raises(ValueError, match=r"prompts.jsonl:2 has a value that JSON cannot represent"):
        write(rows=[ROWS[0], ROWS[1] | {"number": value}])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("responses_per_prompt", 0),
        ("batch_size", -1),
        ("temperature", 0.0),
        ("temperature", -1.0),
    ],
)
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value:g}"):
        GenerationSettings("models/teacher", **{name: value})
