"""Tokenizers of single characters that do what some real ones do: put something before, behind or into a text."""

from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, UNKNOWN = 0, 1, 2, 3
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789=+;:?<>/.{}\"'_-,[]()|\n"

TOOLS_TEMPLATE = (
    "{% if tools %}tools {% for t in tools %}{{ t.function | tojson }}{% endfor %};{% endif %}"
    "{% for m in messages %}{{ m.role }}:{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}"
    "{% if m.role == 'assistant' %}<eos>{% endif %};{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
"""Writes tools and tool calls as JSON."""

TOOL = {"type": "function", "function": {"name": "add", "description": "d", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}


def tokenizer(
    *,
    metaspace: str | None = None,
    prepends: bool = False,
    strips: bool = False,
    appends: str = "",
    begins: str = "<bos> ",
    merges: tuple[tuple[str, str], ...] = (),
    extra: tuple[str, ...] = (),
    template: str | None = TOOLS_TEMPLATE,
    **special: Any,
) -> PreTrainedTokenizerFast:
    """One token for each character.

    Args:
        metaspace: SentencePiece's space before every text, as its pre-tokenizer does it: `first` or `always`.
        prepends: the same, as a normalizer does it, before each part between special tokens too (Llama 2).
        strips: spaces at both ends of a text are lost.
        appends: tokens that are put behind every text, such as `<eos>`.
        begins: tokens that are put before it.
        merges: pairs of tokens that become one.
        extra: more tokens.
        template: a chat template.
        special: names of special tokens, such as `pad_token`.
    """
    space = "▁" if metaspace or prepends else " "
    tokens = ["<pad>", "<bos>", "<eos>", "<unk>", *CHARACTERS, space, *(a + b for a, b in merges), *extra]
    made = Tokenizer(
        models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=list(merges), unk_token="<unk>")
    )
    if metaspace:
        made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=metaspace, split=False)
        made.decoder = decoders.Metaspace(replacement="▁", prepend_scheme=metaspace, split=False)
    elif prepends:
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    else:
        made.decoder = decoders.Fuse()
    if strips:
        made.normalizer = normalizers.Strip()
    ids = {token: i for i, token in enumerate(tokens)}
    made.post_processor = processors.TemplateProcessing(
        single=f"{begins}$A {appends}".strip(),
        special_tokens=[(token, ids[token]) for token in {*begins.split(), *appends.split()}],
    )
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"} | special
    return PreTrainedTokenizerFast(
        tokenizer_object=made, padding_side="left", clean_up_tokenization_spaces=False, chat_template=template, **names
    )
