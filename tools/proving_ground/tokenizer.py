"""One tokenizer for all domains: a token per word, number or sign; the indentation of a line is one token.

Text is written without spaces where Python and English have none: 'solve(xs):' is five tokens, and decoding puts the
spaces of the rest back. Decoding one token alone keeps its space, so that tokens shown side by side stay apart.
"""

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tropd.proving_ground.code import ELEMENTS, LISTS, OPERATIONS, RESULTS
from tropd.proving_ground.instructions import ADJECTIVES, MARKS, NOUNS, STARTS, VERBS
from tropd.proving_ground.mathematics import COLUMNS

PAD, BOS, EOS, UNKNOWN = "<pad>", "<bos>", "<eos>", "<unk>"
LARGEST_NUMBER = 50
"""Every whole number up to it is one token; no problem writes a larger one."""
MAX_LENGTH = 512
"""Room for prompt and response of the hardest level, and half as much again."""

PIECE = r"\n *|\[::-1\]|\.append|[a-z_]+|[0-9]+|==|!=|<=|>=|\+=|\*\*|//|[^\s]"
_SIGNS = (
    *("\n", "\n    ", "\n        ", "\n            ", "[::-1]", ".append", "==", "!=", "<=", ">=", "+=", "**"),
    *"+-*/%=<>()[],:.;!?",
)
_MATHEMATICS = "add the columns total"
_CODE = "def solve return for in if xs out total sum len sorted reversed list write then the number"
_INSTRUCTIONS = "write lines of words about the and line start all other close every with a"
_STAGES = " ".join(operation.words for operation in OPERATIONS.values()).replace("{k}", "")
WORDS = tuple(
    dict.fromkeys(
        (
            *(str(number) for number in range(LARGEST_NUMBER + 1)),
            *_SIGNS,
            *" ".join((_MATHEMATICS, _CODE, _INSTRUCTIONS, _STAGES)).split(),
            *(*COLUMNS, *ELEMENTS, *LISTS, *RESULTS),
            *(*NOUNS, *ADJECTIVES, *VERBS, *STARTS, *MARKS),
        )
    )
)
"""The vocabulary without its four special tokens, in the order of their ids."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of all models; like Qwen's, it puts nothing around a text. Pad, bos and eos differ."""
    vocabulary = {word: index for index, word in enumerate((PAD, BOS, EOS, UNKNOWN, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECE), behavior="removed", invert=True)
    tokenizer.decoder = _decoder()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        padding_side="left",
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def _decoder() -> decoders.Sequence:
    """A space before every token but closing and calling signs, then those spaces taken out that a line has not."""
    return decoders.Sequence(
        [
            decoders.Replace(Regex(r"\A(?![\n,.:;?()\]]|!(?!=)|\[::-1\])"), " "),
            decoders.Fuse(),
            decoders.Replace(Regex(r"(?<=\n|\n {4}|\n {8}|\n {12}) (?=\S)"), ""),
            decoders.Replace(Regex(r"(?<=[(\[]|\[:) |(?<=[a-z]s) (?=\[ ?[0-9:])"), ""),
            decoders.Replace(Regex(r"\A (?=\S+\s)"), ""),
        ]
    )
