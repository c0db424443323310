"""The embedded pair: one tokenizer, a tiny Qwen3 teacher and student, and the prompts they are tried on.

The models are real ones, trained by `python -m tropd.proving_ground.build_pair` and shipped in the package:

>>> from transformers import AutoModelForCausalLM, AutoTokenizer
>>> student = AutoModelForCausalLM.from_pretrained(student_path())
>>> tokenizer = AutoTokenizer.from_pretrained(student_path())
"""

import random
from importlib.resources import files
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config

from tropd.proving_ground.arithmetic import COLUMNS, DEFAULT_LEVEL, Split, distinct_problems, worked_answer

PAD, BOS, EOS, UNKNOWN = "<pad>", "<bos>", "<eos>", "<unk>"
WORDS = (*"0123456789+=,;", *(f"{name}:" for name in (*COLUMNS, "total")))
MAX_NEW_TOKENS = 140
"""Room for any working of the hardest level and its eos; the default level needs about 60."""


def teacher_path() -> Path:
    """Folder of the shipped teacher, for `from_pretrained`."""
    return _model_path("teacher")


def student_path() -> Path:
    """Folder of the shipped student, for `from_pretrained`."""
    return _model_path("student")


def prompts(split: Split, count: int, seed: int, level: int = DEFAULT_LEVEL) -> list[dict[str, str]]:
    """Different problems as records of text; the same arguments give the same records.

    `prompt` is what the model reads, `answer` the final total, and `solution` one right working out of many:

    >>> sorted(prompts("test", 1, seed=0)[0])
    ['answer', 'prompt', 'solution']
    """
    rng = random.Random(f"solutions {seed}")
    return [
        {"prompt": problem.prompt, "answer": str(problem.total), "solution": worked_answer(problem, rng)}
        for problem in distinct_problems(split, count, seed, level)
    ]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Tokenizer of both models: a token per digit, sign or column label; pad, bos and eos differ.

    Like Qwen's, it puts nothing around the text: a prompt starts with its first digit, eos ends a response.
    """
    vocabulary = {word: index for index, word in enumerate((PAD, BOS, EOS, UNKNOWN, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[a-z]+:|."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        padding_side="left",
        model_max_length=256,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def teacher_config() -> Qwen3Config:
    """Four layers of width 128, about 0.85 million parameters."""
    return _config(num_layers=4, width=128, num_heads=4)


def student_config() -> Qwen3Config:
    """Three layers of width 96, about 0.36 million parameters."""
    return _config(num_layers=3, width=96, num_heads=3)


def _config(num_layers: int, width: int, num_heads: int) -> Qwen3Config:
    tokenizer = build_tokenizer()
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        head_dim=32,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def _model_path(name: str) -> Path:
    folder = Path(str(files("tropd.proving_ground") / "models" / name))
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"The shipped {name} is not in {folder}; this installation left out the package data. "
            "Reinstall tropd, or train the pair with: python -m tropd.proving_ground.build_pair --out DIR"
        )
    return folder
