"""What is measured of the family: accuracy, entropy, and how far a student starts from a teacher."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from tropd.proving_ground.domains import grade, records
from tropd.proving_ground.problems import Split

MAX_NEW_TOKENS = 240
"""Room for every solution and its eos: the longest have about 210 tokens."""
ROWS_AT_ONCE = 100


def accuracy(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    domain: str,
    split: Split,
    count: int,
    temperature: float = 0.0,
) -> float:
    """Share of `count` problems whose whole response is right; greedy at temperature 0."""
    rows = records(domain, split, count, seed=1)
    texts = respond(model, tokenizer, [row["prompt"] for row in rows], temperature)
    return sum(grade(domain, row["prompt"], text).correct for row, text in zip(rows, texts, strict=True)) / count


def respond(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[str], temperature: float = 0.0
) -> list[str]:
    """Response to each prompt, without special tokens; greedy at temperature 0."""
    texts: list[str] = []
    for start in range(0, len(prompts), ROWS_AT_ONCE):
        length, ids, _ = roll_out(model, tokenizer, prompts[start : start + ROWS_AT_ONCE], temperature)
        texts += tokenizer.batch_decode(ids[:, length:], skip_special_tokens=True)
    return texts


@torch.no_grad()
def distance(
    teacher: Qwen3ForCausalLM,
    student: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    domain: str,
    count: int = 96,
) -> dict[str, Any]:
    """Distance per token of the student's own rollouts at temperature 1.

    r = log π_T − log π_S of the sampled token. Total variation and entropies are exact: sums over the vocabulary.
    """
    torch.manual_seed(0)
    prompts = [row["prompt"] for row in records(domain, "train", count, seed=2)]
    length, ids, mask = roll_out(student, tokenizer, prompts, temperature=1.0)
    teacher_logp, student_logp = (_response_logp(model, length, ids, mask) for model in (teacher, student))
    tokens = ids[:, length:][mask[:, length:].bool()].unsqueeze(1)
    log_ratio = (teacher_logp - student_logp).gather(1, tokens)
    measured = {
        "total_variation": 0.5 * (teacher_logp.exp() - student_logp.exp()).abs().sum(1).mean(),
        "reverse_kl_sampled": -log_ratio.mean(),
        "outlier_share": (log_ratio < -2).float().mean(),
        "deep_outlier_share": (log_ratio < -5).float().mean(),
        "student_entropy": _entropy(student_logp),
        "teacher_entropy": _entropy(teacher_logp),
    }
    rounded = {name: round(value.item(), 4) for name, value in measured.items()}
    return {"rollouts": count, "response_tokens": len(tokens), **rounded}


@torch.no_grad()
def mean_entropy(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, domain: str, count: int = 96) -> float:
    """Entropy of the next token in nats, a mean over the tokens of the model's own responses at temperature 1."""
    torch.manual_seed(0)
    prompts = [row["prompt"] for row in records(domain, "train", count, seed=2)]
    length, ids, mask = roll_out(model, tokenizer, prompts, temperature=1.0)
    return round(_entropy(_response_logp(model, length, ids, mask)).item(), 4)


@torch.no_grad()
def roll_out(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[str], temperature: float
) -> tuple[int, Tensor, Tensor]:
    """Length of the padded prompts, ids of prompts and responses, and a mask that ends with each eos."""
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    chosen = sampling if temperature else {"do_sample": False}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    ids = model.eval().generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, **ends, **chosen)
    length = inputs["input_ids"].shape[1]
    is_eos = (ids[:, length:] == tokenizer.eos_token_id).long()
    before_end = is_eos.cumsum(1) - is_eos == 0
    return length, ids, torch.cat([inputs["attention_mask"], before_end.long()], 1)


def _response_logp(model: Qwen3ForCausalLM, length: int, ids: Tensor, mask: Tensor) -> Tensor:
    """Log-probabilities [N, V] of the N response tokens, each from the state before it."""
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(ids, attention_mask=mask, position_ids=positions).logits
    return logits[:, length - 1 : -1].log_softmax(-1)[mask[:, length:].bool()]


def _entropy(logp: Tensor) -> Tensor:
    return -(logp.exp() * logp).sum(1).mean()
