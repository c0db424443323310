"""A teacher that ends its responses with a different id than its student: a copy in which two tokens are swapped."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


@torch.no_grad()
def write_with_ending(model: str | Path, token: str, folder: Path) -> None:
    """Write a copy of `model` to `folder` that ends with `token` wherever the model ended with its own ending.

    The rows of the two ids change places in the embeddings and in the output layer, so every probability stays what it
    was, under another id.
    """
    network, tokenizer = AutoModelForCausalLM.from_pretrained(model, dtype="auto"), AutoTokenizer.from_pretrained(model)
    ids = [tokenizer.eos_token_id, tokenizer.get_vocab().get(token)]
    if ids[1] is None or ids[0] == ids[1]:
        raise ValueError(
            f"teacher_ending is {token!r}, which is {'unknown to' if ids[1] is None else 'already the ending of'} "
            f"{model}; name a different token of its vocabulary, such as {tokenizer.unk_token!r}."
        )
    head = network.get_output_embeddings()
    parts: list[Any] = [network.get_input_embeddings().weight, head.weight, getattr(head, "bias", None)]
    for rows in {id(part): part for part in parts if part is not None}.values():  # tied weights change once
        rows[ids] = rows[ids[::-1]].clone()
    network.generation_config.eos_token_id = network.config.eos_token_id = ids[1]
    tokenizer.eos_token = token
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
