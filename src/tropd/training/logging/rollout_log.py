"""Sampled rollouts on disk: every token with its region, its log-probabilities and its part of the loss."""

import math
from bisect import bisect_left
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...atomic_files import append_jsonl
from ...objective.head.fused_loss import FusedLoss
from ...objective.loss import TopKTerm
from ...teacher.local import NotedTopK
from ..records import MicroBatch, Rollout

LEFT_OUT = "left out"
"""The label of a token that is not learned from, because the teacher has no finite score for it."""


def write_rollouts(
    directory: str | Path,
    step: int,
    batch: MicroBatch,
    terms: FusedLoss,
    tokenizer: Any,
    limit: int,
    alternatives: int,
) -> list[dict[str, Any]]:
    """Write the first `limit` sequences of a micro-batch to `rollouts/step-<step>.jsonl`, one a line; returns them.

    Each token has up to `alternatives` of the teacher's likeliest tokens beside it, where they are known.
    """
    columns, likeliest = _columns(batch, terms), _likeliest(batch, tokenizer, alternatives)
    records, start = [], 0
    for rollout in batch.rollouts[:limit]:
        stop = start + sum(rollout.scored)
        here = {name: values[start:stop] for name, values in columns.items()}
        records.append(_record(step, rollout, here, [likeliest.get(n) for n in range(start, stop)], tokenizer))
        start = stop
    path = Path(directory) / "rollouts" / f"step-{step:06d}.jsonl"
    path.unlink(missing_ok=True)  # a resumed run writes this step again
    append_jsonl(path, records)
    return records


def _likeliest(batch: MicroBatch, tokenizer: Any, count: int) -> dict[int, list[list[Any]]]:
    """For tokens whose teacher's top-k is known, text and log-probability of the first `count`."""
    known: Any = batch.noted
    if known is None and isinstance(batch.direct, TopKTerm):
        known = NotedTopK(batch.direct.index, batch.direct.token_ids, batch.direct.teacher_logp)
    if known is None or not count:
        return {}
    columns = (known.index, known.ids[:, :count], known.logp[:, :count].float())
    texts = {token: tokenizer.decode([token]) for token in set(columns[1].flatten().tolist())}
    return {
        place: [[texts[i], round(p, 4)] for i, p in zip(ids, logps, strict=True) if math.isfinite(p)]
        for place, ids, logps in zip(*(column.tolist() for column in columns), strict=True)
    }


def _columns(batch: MicroBatch, terms: FusedLoss) -> dict[str, list[float]]:
    signals, losses, student_logp = batch.signals, terms.losses, terms.student_logp
    rollout_logp = signals.rollout_logp
    if batch.from_notes:  # a sampler does not know prefixes; the first pass over them is of the student that sampled
        first = student_logp if batch.first_update else torch.full_like(student_logp, torch.nan)
        rollout_logp = torch.where(signals.guidance_mask > 0, first, rollout_logp)
    columns = {
        "student_logp": student_logp,
        "rollout_logp": rollout_logp,
        "teacher_logp": signals.teacher_logp,
        "log_ratio": signals.teacher_logp - rollout_logp,
        "trust_weight": signals.trust_weight,
        "outlier_weight": signals.outlier_weight,
        "guidance": signals.guidance_mask,
        "loss": losses.trust + losses.outlier + losses.guidance + losses.reward,
        "direct": torch.full_like(student_logp, torch.nan) if batch.direct is None else _direct(batch, terms),
    }
    return {name: values.detach().float().tolist() for name, values in columns.items()}


def _direct(batch: MicroBatch, terms: FusedLoss) -> Tensor:
    """The divergence of each token that has one; NaN elsewhere."""
    assert batch.direct is not None
    values, index = torch.full_like(terms.direct, torch.nan), batch.direct.index
    values[index] = terms.direct[index]
    return values


def _record(
    step: int,
    rollout: Rollout,
    columns: dict[str, list[float]],
    likeliest: list[list[list[Any]] | None],
    tokenizer: Any,
) -> dict[str, Any]:
    tokens = []
    for n, position in enumerate(rollout.scored_positions()):
        token_id = rollout.response[position]
        values = {name: _round(column[n]) for name, column in columns.items() if name != "guidance"}
        region = _region(values, columns["guidance"][n])
        unknown = {"teacher_logp": None, "log_ratio": None} if region == LEFT_OUT else {}
        before = rollout.response[position - 1] if position else rollout.prompt_ids[-1]
        tokens.append(
            {"id": token_id, "text": text_after(before, token_id, tokenizer), "region": region, **values, **unknown}
            | ({} if likeliest[n] is None else {"alternatives": likeliest[n]})
        )
    return {
        "step": step,
        "row": rollout.row,
        "prompt": tokenizer.decode(rollout.prompt_ids),
        **({} if rollout.teacher is None else {"teacher": rollout.teacher}),
        "teacher_context": tokenizer.decode(rollout.teacher_context),
        "response": tokenizer.decode(rollout.response),
        "prefix_length": rollout.prefix_length,
        "included": rollout.included,
        "ended_by": rollout.ended_by,
        **({} if rollout.external is None else {"episode": _episode(rollout, tokenizer)}),
        "tokens": tokens,
    }


def _episode(rollout: Rollout, tokenizer: Any) -> list[dict[str, Any]]:
    """Who said what, one after the other: the student, its teacher, or a tool; `at` counts the logged tokens before."""
    authors = [
        "tool" if told else "teacher" if taught else "student"
        for told, taught in zip(rollout.external or [], rollout.by_teacher, strict=True)
    ]
    runs = groupby(zip(authors, rollout.response, strict=True), key=lambda pair: pair[0])
    parts, start, scored = [], 0, rollout.scored_positions()
    for author, run in runs:
        tokens = [token for _, token in run]
        parts.append({"author": author, "at": bisect_left(scored, start), "text": tokenizer.decode(tokens)})
        start += len(tokens)
    return parts


def text_after(before: int, token: int, tokenizer: Any) -> str:
    """What a token adds to the text, with its space: a tokenizer may leave out that of the first token it decodes."""
    alone, both = tokenizer.decode([before]), tokenizer.decode([before, token])
    return both[len(alone) :] if both.startswith(alone) else tokenizer.decode([token])


def _round(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)


def _region(values: dict[str, Any], guidance: float) -> str:
    if guidance > 0:
        return "guidance"
    if values["trust_weight"] == values["outlier_weight"] == 0:
        return LEFT_OUT
    return "trust" if values["trust_weight"] >= values["outlier_weight"] else "outlier"
