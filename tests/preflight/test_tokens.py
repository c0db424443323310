"""Each thing that two models' files can say about each other, from real tokenizers and configurations."""

from dataclasses import replace

import pytest
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig

import shipped
from training import tiny
from tropd.preflight.findings import Finding
from tropd.preflight.tokens import ModelFiles, compare_pair, read_model_files

TEXT = [{"prompt": "ab="}, {"prompt": "cde+f="}]
CHAT = [{"prompt": [{"role": "user", "content": "ab="}]}, {"prompt": [{"role": "user", "content": "cde+f="}]}]


def tokenizer(**changes):
    """A tiny tokenizer of its own, so that a test may change it; without a chat template unless one is given."""
    own = tiny._tokenizer(characters="abcdefghijklmnopqrstuvwxyz0123456789 =+;:?<>/.")
    for name, value in ({"chat_template": None} | changes).items():
        setattr(own, name, value)
    return own


def files(name="student", own=None, rows=64, eos=(tiny.EOS,), positions=128, **config) -> ModelFiles:
    settings = LlamaConfig(vocab_size=rows, max_position_embeddings=positions, **config)
    return ModelFiles(name, own or tokenizer(), settings, GenerationConfig(eos_token_id=list(eos)))


def compared(student=None, teacher=None, rows=TEXT, **settings) -> list[Finding]:
    settings = {"max_completion_length": 10} | settings
    return compare_pair(student or files(), teacher or files("teacher"), rows, **settings)


def only(findings, subject, level) -> str:
    """The sentence of the only finding of that subject, which has that level."""
    (found,) = [finding for finding in findings if finding.subject == subject]
    assert found.level == level, found
    return found.sentence


def test_a_pair_that_fits_has_nothing_but_good_news():
    findings = compared()
    assert {finding.level for finding in findings} == {"ok"}
    assert {finding.subject for finding in findings} >= {"vocabulary", "end of sequence", "padding", "teacher's view"}


def test_the_shipped_pair_fits_and_no_weights_are_read(tmp_path):
    for role, path in (("student", shipped.student_path()), ("teacher", shipped.teacher_path())):
        copied = tmp_path / role
        AutoTokenizer.from_pretrained(path).save_pretrained(copied)
        (copied / "config.json").write_bytes((path / "config.json").read_bytes())
    student, teacher = (read_model_files(str(tmp_path / name)) for name in ("student", "teacher"))
    assert student.eos_ids == [2]
    found = compare_pair(student, teacher, [{"prompt": "1+2="}], max_completion_length=140)
    assert {finding.level for finding in found} == {"ok"}


# ---------------------------------------------------------------------- vocabularies


def test_another_vocabulary_is_refused_and_its_prompts_are_not_compared():
    other = tiny._tokenizer(characters="zyxwvutsrqponmlkjihgfedcba0123456789 =+;:?<>/.")
    findings = compared(teacher=files("teacher", other))
    assert "tokenizers disagree on" in only(findings, "vocabulary", "refusal")
    assert "teacher's view" not in {finding.subject for finding in findings}


def test_a_teacher_with_too_small_a_head_is_refused():
    sentence = only(compared(teacher=files("teacher", rows=40)), "vocabulary", "refusal")
    assert "uses token ids up to 52, but the teacher scores only 40" in sentence


def test_a_student_with_too_small_a_head_is_refused():
    assert "has only 40 rows" in only(compared(student=files(rows=40)), "output layers", "refusal")


def test_heads_padded_differently_are_fine():
    assert "64 and 128 rows" in only(compared(teacher=files("teacher", rows=128)), "output layers", "ok")
    assert "are excluded" in only(compared(student=files(rows=128)), "output layers", "note")


def test_special_tokens_that_differ_are_named():
    sentence = only(compared(teacher=files("teacher", tokenizer(unk_token="?"))), "special tokens", "note")
    assert "They differ: unk_token is '<unk>' for the student and '?' for the teacher" in sentence


def test_tokens_that_one_tokenizer_alone_holds_for_special_are_named():
    own = tokenizer()
    own.add_special_tokens({"extra_special_tokens": ["ab"]})
    sentence = only(compared(teacher=files("teacher", own)), "special tokens", "note")
    assert "only the teacher treats 'ab' as special" in sentence


# ---------------------------------------------------------------------- endings and padding


def test_endings_that_differ_are_noted_with_what_is_done_about_them():
    teacher = files("teacher", tokenizer(eos_token="<bos>"), eos=[tiny.BOS])
    said = only(compared(teacher=teacher), "end of sequence", "note")
    assert "The student ends with '<eos>' (2); the teacher ends with '<bos>' (1)." in said
    assert "scored as one action, and rollouts stop at each" in said
    said = only(compared(teacher=teacher, ending="as_given"), "end of sequence", "warning")
    assert "Set ending: one_action" in said and "rollouts stop at '<eos>' (2)" in said


def test_an_ending_that_only_the_teacher_has_counts():
    said = only(compared(teacher=files("teacher", eos=[1, 2])), "end of sequence", "note")
    assert "the teacher ends with '<eos>' (2) and '<bos>' (1)" in said


def test_endings_that_no_head_has_are_refused():
    with pytest.raises(ValueError, match=r"ending_ids is \[2, 64\]; give distinct token ids from 0 to 63"):
        compared(ending_ids=[2, 64])


def test_the_tokenizers_own_ending_counts_beside_the_generation_settings():
    assert files(eos=[1]).eos_ids == [1, 2]


def test_a_student_that_cannot_end_is_refused():
    student = replace(files(own=tokenizer(eos_token=None)), generation_config=GenerationConfig())
    assert "has no end-of-sequence token" in only(compared(student=student), "end of sequence", "refusal")


def test_padding_with_the_ending_is_noted_and_harmless():
    for pad, words in (("<eos>", "pads with"), (None, "has no padding token, so TRL pads with")):
        sentence = only(compared(student=files(own=tokenizer(pad_token=pad))), "padding", "note")
        assert words in sentence and "by position" in sentence


def test_nothing_to_pad_with_is_refused():
    student = files(own=tokenizer(pad_token=None, eos_token=None))
    assert "neither a padding nor an end-of-sequence token" in only(compared(student=student), "padding", "refusal")


# ---------------------------------------------------------------------- templates


def test_messages_without_a_template_are_refused():
    sentence = only(compared(rows=[*CHAT, *TEXT]), "chat template", "refusal")
    assert "2 of 4 prompts are messages, but the student's tokenizer has no chat template" in sentence


def test_text_for_a_student_with_a_template_is_warned():
    both = tokenizer(chat_template=tiny.CHAT_TEMPLATE)
    sentence = only(compared(files(own=both), files("teacher", both)), "chat template", "warning")
    assert "2 of 2 prompts are plain text" in sentence and "`chat: true`" in sentence


def chat_pair(theirs):
    return files(own=tokenizer(chat_template=tiny.CHAT_TEMPLATE)), files("teacher", tokenizer(chat_template=theirs))


def test_equal_templates_are_good_news():
    sentence = only(compared(*chat_pair(tiny.CHAT_TEMPLATE), rows=CHAT), "teacher's view", "ok")
    assert "same token ids" in sentence


def test_other_templates_are_shown_where_they_first_differ():
    student, teacher = chat_pair(tiny.CHAT_TEMPLATE.replace("a:", "x:"))
    sentence = only(compared(student, teacher, CHAT), "teacher's view", "warning")
    assert "2 of 2 prompts differently" in sentence
    assert "From token 5 on it will see 'a:' where its own has 'x:'" in sentence
    assert "teacher_chat_template: teacher" in sentence and "teacher_chat_template_kwargs" in sentence


def test_a_teacher_that_uses_its_own_template_is_only_noted():
    student, teacher = chat_pair(tiny.CHAT_TEMPLATE.replace("a:", "x:"))
    sentence = only(compared(student, teacher, CHAT, teacher_chat_template="teacher"), "teacher's view", "note")
    assert "a different context than the student" in sentence


def test_template_switches_reach_the_comparison():
    settings = {"teacher_chat_template_kwargs": {"enable_thinking": True}}
    findings = compared(*chat_pair(tiny.CHAT_TEMPLATE), rows=CHAT, **settings)
    assert "a different context" in only(findings, "teacher's view", "note")


def test_a_teacher_without_a_template_reads_the_students():
    student = files(own=tokenizer(chat_template=tiny.CHAT_TEMPLATE))
    assert "The teacher has no chat template; it reads" in only(compared(student, rows=CHAT), "teacher's view", "note")
    refused = compared(student, rows=CHAT, teacher_chat_template="teacher")
    assert "teacher's tokenizer has no chat template" in only(refused, "chat template", "refusal")


def test_a_template_that_refuses_the_prompts_is_noted_with_its_words():
    student, teacher = chat_pair("{{ raise_exception('roles must alternate') }}")
    assert "roles must alternate" in only(compared(student, teacher, CHAT), "teacher's view", "note")


def test_a_privileged_prompt_is_the_teachers_business():
    rows = [{"prompt": "ab=", "teacher_prompt": "the answer is c. ab="}]
    assert "a different context" in only(compared(rows=rows), "teacher's view", "note")


# ---------------------------------------------------------------------- beginnings and lengths


def with_bos():
    own = tokenizer()
    from tokenizers.processors import TemplateProcessing

    own.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", tiny.BOS)])
    return own


def test_a_beginning_that_only_the_teacher_expects_is_warned():
    sentence = only(compared(teacher=files("teacher", with_bos())), "beginning of sequence", "warning")
    assert "begins a prompt with '<bos>', but the prompts it will see do not" in sentence
    fixed = compared(teacher=files("teacher", with_bos()), teacher_chat_template="teacher")
    assert "beginning of sequence" not in {finding.subject for finding in fixed}


def test_a_beginning_that_only_the_student_adds_is_noted():
    assert "does not begin" in only(compared(files(own=with_bos())), "beginning of sequence", "note")


def test_two_beginnings_are_warned():
    both = with_bos()
    rows = [{"prompt": "<bos>ab="}]
    assert "twice" in only(compared(files(own=both), files("t", both), rows), "beginning of sequence", "warning")


def test_a_context_that_is_too_short_is_refused_with_its_numbers():
    findings = compared(files(positions=12), max_completion_length=8)
    sentence = only(findings, "student's context", "refusal")
    assert "The longest prompt has 5 tokens" in sentence and "13 together" in sentence
    assert "made for 12 positions" in sentence and "at most 7" in sentence
    assert "within its 128 positions" in only(findings, "teacher's context", "ok")


def test_the_teachers_own_prompt_is_what_must_fit_the_teacher():
    rows = [{"prompt": "ab=", "teacher_prompt": "c" * 30}]
    findings = compared(teacher=files("teacher", positions=32), rows=rows)
    assert "has 30 tokens for the teacher" in only(findings, "teacher's context", "refusal")


def test_scaled_positions_count():
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 100, "rope_theta": 1e4}
    assert files(positions=100, rope_parameters=rope).context_length == 400
    dynamic = {"rope_type": "dynamic", "factor": 3.0, "rope_theta": 1e4}
    assert files(positions=100, rope_parameters=dynamic).context_length == 300


def test_no_prompts_is_said():
    assert "no prompts to render" in only(compared(rows=[]), "prompts", "note")


@pytest.mark.parametrize("rows", [TEXT, CHAT])
def test_every_sentence_ends_and_names_no_type(rows):
    both = tokenizer(chat_template=tiny.CHAT_TEMPLATE)
    for finding in compared(files(own=both), files("teacher", both), rows):
        assert finding.sentence.rstrip('"').endswith((".", ".'")), finding
        assert "None" not in finding.sentence
