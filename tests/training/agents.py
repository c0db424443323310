"""A tokenizer with a real template and a real parser of tool calls, and a student that plays a script."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import trl
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from training.tiny import ScriptedTrainer, config, same_dataset
from tropd.training.records import Rollout

ASK = [{"role": "user", "content": "What is 12+3?"}]
CALL = '<tool_call>\n{"name": "calculator", "arguments": {"expression": "12+3"}}\n</tool_call><|im_end|>'
ANSWER = "The answer is 15.<|im_end|>"
RECORDED = [
    {
        "prompt": ASK,
        "teacher_response": [
            {
                "role": "assistant",
                "tool_calls": [{"function": {"name": "calculator", "arguments": {"expression": "12+3"}}}],
            },
            {"role": "tool", "name": "calculator", "content": "15"},
            {"role": "assistant", "content": "The answer is 15."},
        ],
    }
] * 4
"""Rows with an episode of a teacher that did so."""
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MARKS = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"]


def new_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, and Qwen3's template as TRL ships it: it renders tools, and the host brings its parser."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate([*SPECIAL, *MARKS, *alphabet])}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    backend.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in MARKS])
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
    made.chat_template = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text()
    return made


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    return new_tokenizer()


def ids(text: str) -> list[int]:
    return tokenizer()(text)["input_ids"]


def text(tokens: list[int]) -> str:
    return tokenizer().decode(tokens)


def qwen(seed: int) -> Qwen3ForCausalLM:
    """A random Qwen3 over the bytes."""
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer()),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            max_position_embeddings=2048,
            initializer_range=0.3,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=2,
        )
    )


def calculator(expression: str) -> str:
    """Compute an arithmetic expression.

    Args:
        expression: the expression, such as 12+3.
    """
    return str(sum(map(int, expression.split("+"))))


class Store:
    """An environment that knows a number; each row has one of its own."""

    made: list["Store"] = []  # noqa: RUF012

    def __init__(self) -> None:
        self.calls = 0
        Store.made.append(self)

    def reset(self, **row: Any) -> str:
        self.calls = 0
        return "\nUse the tool. State 7."

    def calculator(self, expression: str) -> str:
        """Compute.

        Args:
            expression: such as 12+3.
        """
        self.calls += 1
        return str(15 + self.calls - 1)

    def get_reward(self) -> float:
        return float(self.calls)


def reads(context: list[int]) -> str:
    """What stands behind the last question."""
    return text(context).split("<|im_start|>user\nWhat is 12+3?")[-1]


def calls_then_answers(context: list[int]) -> str:
    """Each row calls the tool once."""
    return ANSWER if "<tool_response>" in reads(context) else CALL


def build(directory: Any, play: Callable[[list[int]], str] | None, method: str = "opd", **settings: Any):
    """A trainer with tools whose student plays `play`, from what a row has read to what it writes next."""
    options = {"processing_class": new_tokenizer(), "teacher_processing_class": new_tokenizer()}
    for name in ("tools", "environment_factory", "reward_funcs", "rollout_func"):
        if name in settings:
            options[name] = settings.pop(name)
    if not options.keys() & {"tools", "environment_factory", "rollout_func"}:
        options["tools"] = [calculator]
    rows = settings.pop("rows", [{"prompt": ASK}] * 4)
    student, teacher = settings.pop("student", None), settings.pop("teacher", None)
    defaults = {"per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 400}
    made = ScriptedTrainer(
        student or qwen(1),
        teacher or qwen(2),
        args=config(directory, method, **defaults | settings),
        train_dataset=None if rows is None else same_dataset(rows),
        **options,
    )
    made.script = None if play is None else lambda contexts: [ids(play(context)) for context in contexts]
    return made


def rollouts(trainer: ScriptedTrainer) -> list[Rollout]:
    """What one step of a run was learned from."""
    trainer.train()
    return trainer._buffered_inputs[0].rollouts


def logged(trainer: ScriptedTrainer) -> dict[str, float]:
    return next(entry for entry in trainer.state.log_history if "loss" in entry)
