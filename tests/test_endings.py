"""What ends a response: read from generation settings, tokenizers and chat templates shaped as those of real families.

All models here share one vocabulary of special tokens; they differ in which of them they name.
"""

from functools import cache

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast

from tropd.teacher.endings import Declared, closing_ids, declared_endings, pair_endings, sentence

TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
HEADER, EOT, EOM = "<|header|>", "<|eot_id|>", "<|eom_id|>"
EOS, TURN, END_OF_TURN = "<eos>", "<start_of_turn>", "<end_of_turn>"
START, END, RETURN, CALL = "<|start|>", "<|end|>", "<|return|>", "<|call|>"
SPECIAL = (TEXT, IM_START, IM_END, HEADER, EOT, EOM, EOS, TURN, END_OF_TURN, START, END, RETURN, CALL)
WORD = "###"
ID = {token: number for number, token in enumerate(("<unk>", *SPECIAL, WORD))}
VOCABULARY = 40

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{% for m in messages %}<|header|>{{ m['role'] }}\n\n{{ m['content'] }}"
    "{% if m['tool_calls'] %}<|eom_id|>{% else %}<|eot_id|>{% endif %}{% endfor %}"
)
GEMMA = (
    "{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
)
PHI = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% else %}{{ eos_token }}{% endif %}"
)
HARMONY = (
    "{% for m in messages %}<|start|>{{ m['role'] }}{{ m['content'] }}"
    "{% if m['tool_calls'] %}<|call|>{% elif loop.last and m['role'] == 'assistant' %}<|return|>{% else %}<|end|>"
    "{% endif %}{% endfor %}"
)
USER_ALONE = "{{ raise_exception('one message of the user') if messages | length > 1 }}{{ messages[0]['content'] }}"
TWO_CLOSING = "{% for m in messages %}{{ m['content'] }}\n<|end|><|return|>{% endfor %}"
PLAIN = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n###\n{% endfor %}"


@cache
def _backend() -> Tokenizer:
    backend = Tokenizer(models.WordLevel({**ID, "a": len(ID)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return backend


def tokenizer(eos: str | None = None, template: str | dict | None = None) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=_backend(),
        unk_token="<unk>",
        eos_token=eos,
        extra_special_tokens=list(SPECIAL),
        chat_template=template,
    )


def model(eos: str | None, *generation: str, template: str | dict | None = None) -> Declared:
    """What a model declares with this ending of its tokenizer, and these of its generation settings."""
    ids = [ID[token] for token in generation]
    settings = GenerationConfig(eos_token_id=ids[0] if len(ids) == 1 else ids or None)
    return declared_endings(settings, tokenizer(eos, template))


def named(ids) -> list[str]:
    tokens = {number: token for token, number in ID.items()}
    return [tokens[i] for i in ids]


QWEN_BASE = (TEXT, TEXT)
QWEN = (IM_END, IM_END, TEXT)


# ---------------------------------------------------------------------- one model


@pytest.mark.parametrize(
    ("template", "closing"),
    [
        (None, []),
        ("", []),
        (CHATML, [IM_END]),
        (LLAMA3, [EOT]),
        (GEMMA, [END_OF_TURN]),
        (PHI, [END, EOS]),
        (HARMONY, [RETURN]),
        (TWO_CLOSING, [END, RETURN]),
        (PLAIN, []),
        (USER_ALONE, []),
        ({"default": CHATML, "tool_use": LLAMA3}, [IM_END]),
        ({"tool_use": LLAMA3, "rag": CHATML}, []),
    ],
)
def test_what_closes_a_conversation_is_what_its_template_writes_behind_the_last_answer(template, closing):
    assert named(closing_ids(tokenizer(EOS, template))) == closing


def test_a_template_that_does_not_show_the_answer_closes_nothing():
    parts = "{% for m in messages %}{% for part in m['content'] %}{{ part['text'] }}{% endfor %}<|im_end|>{% endfor %}"
    assert closing_ids(tokenizer(EOS, parts)) == []


def test_the_text_that_stands_behind_an_answer_is_no_ending_but_the_special_token_behind_that_is():
    reasons = CHATML.replace("<|im_end|>", " a a <|im_end|>")
    assert named(closing_ids(tokenizer(EOS, reasons))) == [IM_END]


@pytest.mark.parametrize(
    ("eos", "generation", "template", "ids", "apart"),
    [
        pytest.param(TEXT, [TEXT], None, [TEXT], [], id="base"),
        pytest.param(TEXT, [TEXT], CHATML, [TEXT, IM_END], [], id="base with a chat template"),
        pytest.param(IM_END, [IM_END, TEXT], CHATML, [IM_END, TEXT], [], id="ChatML"),
        pytest.param(EOT, [TEXT, EOM, EOT], LLAMA3, [EOT, TEXT], [EOM], id="Llama 3"),
        pytest.param(EOS, [EOS, END_OF_TURN], GEMMA, [EOS, END_OF_TURN], [], id="Gemma"),
        pytest.param(EOS, [EOS, START, END], PHI, [EOS, END], [START], id="Phi"),
        pytest.param(RETURN, [RETURN, TEXT, CALL], HARMONY, [RETURN, TEXT], [CALL], id="harmony"),
        pytest.param(EOS, [EOS], TWO_CLOSING, [EOS, END], [], id="two behind each other"),
        pytest.param(EOS, [EOS], PLAIN, [EOS], [], id="closed by text"),
        pytest.param(None, [EOS], None, [EOS], [], id="generation settings alone"),
        pytest.param(EOS, [], None, [EOS], [], id="tokenizer alone"),
        pytest.param(None, [], CHATML, [IM_END], [], id="chat template alone"),
        pytest.param(None, [], None, [], [], id="nothing"),
    ],
)
def test_endings_of_a_family(eos, generation, template, ids, apart):
    found = model(eos, *generation, template=template)
    assert named(found.ids) == ids
    assert named(i for i in found.separators if i in found.sources) == apart
    assert set(named(found.stops)) == {*generation, *([eos] if eos else [])}, "its own generation stops at all it names"


def test_each_source_is_told():
    found = model(IM_END, TEXT, IM_END, template=CHATML)
    assert found.sources[ID[IM_END]] == ("tokenizer", "generation_config", "chat template")
    assert found.sources[ID[TEXT]] == ("generation_config",)


def test_an_ending_that_only_the_chat_template_writes_is_none_at_which_generation_stops():
    found = model(TEXT, TEXT, template=CHATML)
    assert (named(found.ids), named(found.stops)) == ([TEXT, IM_END], [TEXT])


def test_either_source_may_be_missing():
    assert declared_endings(None, None) == Declared(())
    assert declared_endings(GenerationConfig(eos_token_id=[4, 7]), None).ids == (4, 7)
    assert named(declared_endings(None, tokenizer(EOS)).ids) == [EOS]


@pytest.mark.parametrize(
    "template", [USER_ALONE + CHATML, {"tool_use": CHATML, "rag": CHATML}], ids=["refuses", "no default"]
)
def test_a_template_that_cannot_be_asked_sets_nothing_apart(template):
    found = model(*QWEN, template=template)
    assert (named(found.ids), found.separators) == ([IM_END, TEXT], ())


def test_a_declared_word_that_closes_the_conversation_is_an_ending_too():
    found = model(EOS, EOS, WORD, template=PLAIN)
    assert (named(found.ids), found.separators) == ([EOS, WORD], ())


# ---------------------------------------------------------------------- a pair


def pair(student, *teachers, ending="one_action", ending_ids=None, vocab_size=VOCABULARY):
    names = [None] if len(teachers) == 1 else list("xyz")[: len(teachers)]
    return pair_endings(
        student,
        dict(zip(names, teachers, strict=True)),
        ending=ending,
        ending_ids=ending_ids,
        vocab_size=vocab_size,
    )


def test_base_and_instruct_end_by_two_ids_of_which_the_students_stands_for_both():
    found = pair(model(*QWEN_BASE), model(*QWEN, template=CHATML))
    assert named(found.ids) == named(found.as_one) == named(found.stop_ids) == [TEXT, IM_END]
    assert found.merged and found.differ and found.unheeded == () and not found.reason


def test_models_that_declare_the_same_two_ids_are_merged_too():
    """Gemma's base and instruct models name the same set, and write different ones of it."""
    same = model(EOS, EOS, END_OF_TURN, template=GEMMA)
    found = pair(same, same)
    assert named(found.as_one) == [EOS, END_OF_TURN] and found.merged and not found.differ


def test_models_with_one_ending_and_the_same_are_left_alone():
    found = pair(model(EOS, EOS), model(EOS, EOS))
    assert found.as_one == () and named(found.stop_ids) == [EOS] and not found.differ
    assert found.reason == "all models end a response with the same id"


def test_an_end_of_turn_is_no_ending_but_the_sampler_stops_at_it():
    llama = model(EOT, TEXT, EOM, EOT, template=LLAMA3)
    found = pair(llama, llama)
    assert named(found.as_one) == [EOT, TEXT] and named(found.stop_ids) == [EOT, TEXT, EOM]
    assert named(pair(model(TEXT, TEXT), llama).stop_ids) == [TEXT, EOT], "it is the teacher's, and not the student's"


def test_what_separates_the_teachers_turns_is_no_ending_though_the_student_names_it_and_stops_there():
    found = pair(model(CALL, CALL, EOS), model(RETURN, RETURN, TEXT, CALL, template=HARMONY))
    assert named(found.as_one) == [EOS, RETURN, TEXT]
    assert named(found.stop_ids) == [EOS, RETURN, TEXT, CALL]


def test_so_it_is_where_the_teacher_does_not_declare_it():
    found = pair(model(END, END, EOS), model(RETURN, RETURN, TEXT, CALL, template=HARMONY))
    assert END in named(found.stop_ids)
    assert named(found.as_one) == [EOS, RETURN, TEXT]


def test_a_student_whose_only_ending_separates_the_teachers_turns_is_told_so():
    found = pair(model(CALL, CALL), model(RETURN, RETURN, CALL, template=HARMONY))
    assert named(found.stop_ids) == [RETURN, CALL] and found.as_one == ()
    assert "same id" not in found.reason


def test_one_set_for_several_teachers():
    found = pair(model(*QWEN_BASE), model(*QWEN, template=CHATML), model(EOT, EOT, template=LLAMA3))
    assert named(found.as_one) == [TEXT, IM_END, EOT]
    assert found.as_dict() == {
        "ids": [ID[TEXT], ID[IM_END], ID[EOT]],
        "stop_ids": [ID[TEXT], ID[IM_END], ID[EOT]],
        "one_action": True,
        "reason": None,
        "student": [ID[TEXT]],
        "teachers": {"x": [ID[IM_END], ID[TEXT]], "y": [ID[EOT]]},
    }


def test_ids_that_not_all_models_have_are_left_out():
    instruct = model(*QWEN, template=CHATML)
    found = pair(model(*QWEN_BASE), instruct, vocab_size=ID[IM_END])
    assert found.as_one == () and named(found.ids) == named(found.stop_ids) == [TEXT]
    assert found.reason == f"the other endings ({ID[IM_END]}) are ids that not all models have"
    three = pair(model(*QWEN_BASE), instruct, model(EOT, EOT), vocab_size=ID[EOT])
    assert named(three.as_one) == [TEXT, IM_END], "what is left of the set is one action all the same"


def test_models_that_name_no_ending_have_a_reason_of_their_own():
    found = pair(Declared(()), Declared(()))
    assert found.as_one == found.stop_ids == () and found.reason == "no model names an id that ends a response"


def test_as_given_leaves_each_ending_to_itself_and_the_sampler_to_the_student():
    found = pair(model(TEXT, TEXT, template=CHATML), model(*QWEN, template=CHATML), ending="as_given")
    assert found.as_one == () and found.reason == "ending is as_given"
    assert named(found.ids) == [TEXT, IM_END], "a teacher's response is cut at either"
    assert named(found.stop_ids) == [TEXT] and named(found.unheeded) == [IM_END]


# ---------------------------------------------------------------------- given ids


def test_ids_that_are_given_take_the_place_of_what_was_found():
    found = pair(model(*QWEN_BASE), model(*QWEN), ending_ids=[ID[TEXT], ID[EOT]])
    assert named(found.as_one) == named(found.stop_ids) == [TEXT, EOT]


def test_the_student_goes_on_stopping_at_its_own_beside_given_ids():
    found = pair(model(*QWEN_BASE), model(*QWEN), ending_ids=[ID[IM_END], ID[EOT]])
    assert named(found.as_one) == [IM_END, EOT] and named(found.stop_ids) == [IM_END, EOT, TEXT]


def test_one_given_id_is_no_claim_that_the_models_end_alike():
    found = pair(model(*QWEN_BASE), model(*QWEN), ending_ids=[ID[IM_END]])
    assert found.as_one == () and named(found.stop_ids) == [IM_END, TEXT]
    assert "same id" not in found.reason


def test_as_given_stops_at_given_ids_alone():
    found = pair(model(*QWEN_BASE), model(*QWEN), ending="as_given", ending_ids=[ID[IM_END]])
    assert named(found.stop_ids) == [IM_END] and found.as_one == ()
    assert set(named(found.ids)) == {TEXT, IM_END} and named(found.unheeded) == [TEXT]


@pytest.mark.parametrize("ending", ["one_action", "as_given"])
@pytest.mark.parametrize("given", [[], [2, 2], [-1, 2], [2, VOCABULARY]])
def test_ids_that_cannot_be_are_refused_in_words(given, ending):
    with pytest.raises(ValueError) as refusal:
        pair(model(*QWEN_BASE), model(*QWEN), ending=ending, ending_ids=given)
    assert str(refusal.value) == (
        f"ending_ids is {given}; give distinct token ids from 0 to {VOCABULARY - 1}, which all models have, or "
        f"remove it: [{ID[TEXT]}, {ID[IM_END]}] was found."
    )


# ---------------------------------------------------------------------- the line


def test_a_line_says_who_ends_how_and_what_is_done():
    line = sentence(pair(model(*QWEN_BASE), model(*QWEN, template=CHATML)), tokenizer())
    student, teacher, done = line.replace("; ", ". ").split(". ")
    assert student.lower().startswith("the student ") and student.endswith(f"with '{TEXT}' ({ID[TEXT]})")
    assert teacher.startswith("the teacher ") and teacher.endswith(
        f"'{IM_END}' ({ID[IM_END]}) and '{TEXT}' ({ID[TEXT]})"
    )
    assert done.endswith("are scored as one action, and rollouts stop at each of them.")


def test_the_line_gives_the_reason_where_they_are_not_one_action():
    line = sentence(pair(model(*QWEN_BASE), model(*QWEN), ending="as_given"), tokenizer())
    assert line.endswith(f"is scored separately (ending is as_given), and rollouts stop at '{TEXT}' ({ID[TEXT]}).")


def test_the_line_names_several_teachers_and_what_does_not_end():
    line = sentence(pair(model(*QWEN_BASE), model(EOT, EOT), Declared(())), tokenizer())
    first, second = line.split(". ")[0].split("; ")[1:]
    assert "teacher 'x'" in first and first.endswith(f"with '{EOT}' ({ID[EOT]})")
    assert "teacher 'y'" in second and second.endswith("with nothing")
