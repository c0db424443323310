"""Tokens shown one by one read like the whole text, spaces included."""

from itertools import pairwise

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tropd.training.logging.rollout_log import text_after

WORDS = ("<unk>", "▁the", "▁old", "▁fox", "es")


def test_texts_of_tokens_join_to_the_text():
    """As with SentencePiece: a word brings its space, which decoding leaves out where a text begins."""
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
    ids = [1, 2, 3, 4, 1, 3]
    assert tokenizer.decode([2]) == "old", "what makes this needed"
    shown = [text_after(before, token, tokenizer) for before, token in pairwise(ids)]
    assert shown == [" old", " fox", "es", " the", " fox"]
    assert "the" + "".join(shown) == tokenizer.decode(ids)
