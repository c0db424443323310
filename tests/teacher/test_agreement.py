"""A pair whose token ids disagree is refused before any training, in a sentence that names the tokens."""

from dataclasses import dataclass, field

import pytest

from tropd.teacher.vocabulary import check_vocabularies


@dataclass
class Vocabulary:
    """As much of a tokenizer as the check reads."""

    words: dict[str, int] = field(default_factory=lambda: {"<eos>": 0, "cat": 1, "dog": 2})

    def get_vocab(self):
        return self.words


def test_equal_vocabularies_agree_however_far_the_heads_are_padded():
    check_vocabularies(Vocabulary(), Vocabulary(), teacher_vocab_size=3)
    check_vocabularies(Vocabulary(), Vocabulary(), teacher_vocab_size=64)


def test_a_teacher_without_a_tokenizer_is_compared_by_size():
    check_vocabularies(Vocabulary(), None, teacher_vocab_size=3)


def test_a_teacher_that_knows_more_tokens_agrees():
    check_vocabularies(Vocabulary(), Vocabulary({"<eos>": 0, "cat": 1, "dog": 2, "cow": 3}), teacher_vocab_size=4)


@pytest.mark.parametrize("theirs", [None, Vocabulary()])
def test_a_teacher_too_small_for_the_tokenizer_is_refused(theirs):
    with pytest.raises(ValueError, match=r"token ids up to 2, but the teacher scores only 2 ids.*same family"):
        check_vocabularies(Vocabulary(), theirs, teacher_vocab_size=2)


def test_exchanged_tokens_are_named_with_both_ids():
    with pytest.raises(
        ValueError, match=r"disagree on 2 of 3 tokens \('cat' is 1 for the student and 2 for the teacher"
    ):
        check_vocabularies(Vocabulary(), Vocabulary({"<eos>": 0, "cat": 2, "dog": 1}), teacher_vocab_size=3)


def test_a_token_the_teacher_does_not_know_is_named():
    with pytest.raises(ValueError, match=r"disagree on 1 of 3 tokens \('dog' is 2 for the student and unknown"):
        check_vocabularies(Vocabulary(), Vocabulary({"<eos>": 0, "cat": 1}), teacher_vocab_size=3)
