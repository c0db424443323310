"""A teacher in this process: a frozen Transformers model that reads what the student wrote.

N counts scored response tokens, row after row; M ≤ N of them are asked for the teacher's top-k.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..models.files import context_length
from ..models.fingerprint import of_weights
from ..models.hidden_states import expose_hidden_states, head_rows, rotates_by_length
from ..models.packing import pack_responses
from ..models.sampling import sample, until_eos
from ..objective.endings import Endings, events_of
from ..objective.head.layer import Head, Scratch, gather_logps, normalise_, scan_vocabulary
from ..objective.randomness import DrawAddress

WantsTopK = Callable[[Tensor, Tensor, slice | Tensor], Tensor]
"""(teacher_logp [C], teacher_entropy [C], which of the N tokens) → bool [C]: which need the teacher's top-k."""


@dataclass(frozen=True)
class TeacherStates:
    """What a teacher's whole distributions can be made from.

    Attributes:
        index: [n] sorted positions among the N tokens: those that this teacher has read.
        hidden: [n, H_T] last hidden states.
        head: its output layer at the sampling temperature, with the run's endings.
    """

    index: Tensor
    hidden: Tensor
    head: Head


@dataclass(frozen=True)
class NotedTopK:
    """A teacher's top-k as the rollout log shows it; nothing is learned from it.

    Attributes:
        index: [M] positions among the N tokens, sorted.
        ids: [M, K].
        logp: [M, K], falling.
    """

    index: Tensor
    ids: Tensor
    logp: Tensor


@dataclass(frozen=True)
class TeacherScores:
    """What the teacher says about N tokens. Made by `LocalTeacher.score`, read by the gate and what follows it.

    Attributes:
        logp: [N], log π_T of each token, at the sampling temperature.
        entropy: [N], nats.
        topk_index: [M] sorted positions among the N tokens; empty where no top-k was asked for.
        topk_ids: [M, K] int32; K is 0 where no top-k was asked for.
        topk_logp: [M, K].
        states: of each teacher that has read some of the tokens, kept only for full-vocabulary methods.
        noted: the top-k of tokens that are logged; `None` where none are.
    """

    logp: Tensor
    entropy: Tensor
    topk_index: Tensor
    topk_ids: Tensor
    topk_logp: Tensor
    states: tuple[TeacherStates, ...] = ()
    noted: NotedTopK | None = None


@dataclass(frozen=True)
class TopKRequest:
    """Ask for the teacher's top-k where `wanted` says so, among the first `vocab_limit` of its token ids.

    Attributes:
        k: how many.
        vocab_limit: ids from here on are not the student's.
        wanted: which tokens need it.
        below: what a teacher is told that is far away, so that it sends few: [N], log π_T above which `wanted` says no.
        above: likewise, the teacher's entropy, nats, up to which it says no.
    """

    k: int
    vocab_limit: int
    wanted: WantsTopK
    below: Callable[[], Tensor] | None = None
    above: float = -math.inf


class LocalTeacher:
    """Scores and writes with a frozen model.

    Args:
        model: a causal language model; put in evaluation mode, gradients switched off.
        forward: what is called for a forward pass: the model, or what accelerate, FSDP or DeepSpeed wrapped it in.
        by_length: read rows of about one length together, in as many passes as pay; not with sharded weights, where
            all processes must make the same passes.
    """

    def __init__(self, model: PreTrainedModel, forward: Callable[..., Any] | None = None, by_length: bool = True):
        # An adapter's base model is where the forward is; `PeftModel` hands keyword arguments on to it.
        expose_hidden_states(getattr(model, "get_base_model", lambda: model)())
        model.eval().requires_grad_(False)  # type: ignore[no-untyped-call]
        self.model = model
        self.forward = forward or model
        self.by_length = by_length and not rotates_by_length(model)

    @cached_property
    def vocab_size(self) -> int:
        """Rows of the head: the ids that this teacher can score and read."""
        return head_rows(self.model)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def name(self) -> str:
        """What its configuration calls it."""
        return str(getattr(self.model.config, "_name_or_path", "") or "")

    @property
    def generation_config(self) -> Any:
        return self.model.generation_config

    @property
    def most_topk(self) -> int | None:
        """Any k."""
        return None

    @property
    def context_length(self) -> int | None:
        """By its configuration."""
        base = getattr(self.model, "get_base_model", lambda: self.model)()
        return context_length(base.config)

    def fingerprint(self) -> str:
        """Of its weights."""
        return of_weights(self.model)

    @torch.no_grad()
    def score(
        self,
        contexts: Sequence[list[int]],
        responses: Sequence[list[int]],
        scored: Sequence[list[bool]],
        *,
        pad_id: int,
        temperature: float = 1.0,
        rows_per_pass: int | None = None,
        topk: TopKRequest | None = None,
        keep_hidden: bool = False,
        passes: int = 0,
        endings: Endings = (),
    ) -> TeacherScores:
        """One forward pass over each response in its teacher context.

        Args:
            contexts: token ids of each row's prompt, as the *teacher* sees it.
            responses: token ids of each row's response, shared with the student.
            scored: for each response token, whether a score is wanted.
            pad_id: any valid token id.
            temperature: the rollout's sampling temperature.
            rows_per_pass: rows per forward; all by default.
            topk: where to keep the teacher's top-k.
            keep_hidden: keep hidden states for full-vocabulary methods.
            passes: make at least this many passes, idle ones last: with sharded weights the processes meet
                in each, whatever number of rows they have.
            endings: ids that end a response, scored as one action; see `objective.endings`.
        """
        step = rows_per_pass or max(len(contexts), 1)
        batches = [
            (contexts[start : start + step], responses[start : start + step], scored[start : start + step])
            for start in range(0, len(contexts), step)
        ]
        batches += [([[pad_id]], [[]], [[]])] * (passes - len(batches))
        parts, hidden, done, head = [], [], 0, None
        for batch in batches:
            packed = pack_responses(*batch, pad_id, self.model.device, by_length=self.by_length)
            # A student padded further than its teacher may sample an id beyond the teacher's vocabulary; from it on
            # nothing in a row has a teacher's context, and the ids are -1.
            readable = torch.cat([(ids < self.vocab_size).cumprod(-1).flatten() for ids in packed.input_ids])
            token_ids = torch.where(readable[packed.state_index + 1] > 0, packed.token_ids, -1)
            part, states, head = self.forward(
                input_ids=tuple(ids.clamp_max(self.vocab_size - 1) for ids in packed.input_ids),
                attention_mask=packed.attention_mask,
                # Inside the forward: a sharded head is whole only there.
                on_hidden=lambda hidden, head, packed=packed, token_ids=token_ids, done=done: _score_states(
                    packed.states(hidden), head.at_temperature(temperature, endings), token_ids, done, topk
                ),
            )
            parts.append(part)
            hidden += [states] if keep_hidden else []
            done += packed.token_ids.numel()
        logp, entropy, index, ids, topk_logp = (torch.cat(column) for column in zip(*parts, strict=True))
        if not keep_hidden or head is None:
            return TeacherScores(logp, entropy, index, ids, topk_logp)
        read = TeacherStates(torch.arange(len(logp), device=logp.device), torch.cat(hidden), head)
        return TeacherScores(logp, entropy, index, ids, topk_logp, (read,))

    def write(
        self,
        contexts: Sequence[list[int]],
        *,
        pad_id: int,
        eos_ids: Sequence[int],
        max_new_tokens: int,
        temperature: float,
        vocab_limit: int | None = None,
        draws: DrawAddress | None = None,
    ) -> list[list[int]]:
        """Sample one response for each context, of ids below `vocab_limit`; without the first EOS and what follows.

        `draws` is for engines that draw by themselves; what this model draws by is set around it.
        """
        written = sample(
            self.model,
            contexts,
            max_new_tokens=max_new_tokens,
            eos_ids=eos_ids,
            pad_id=pad_id,
            temperature=temperature,
            vocab_limit=vocab_limit,
        )
        return [until_eos(response, eos_ids) for response in written]


def _score_states(
    states: Tensor, head: Head, token_ids: Tensor, offset: int, topk: TopKRequest | None
) -> tuple[tuple[Tensor, ...], Tensor, Head]:
    """Log-probabilities (−inf for an id of -1), entropies, and the wanted tokens' top-k, in one pass over the head.

    Behind them what they were made from, for whole distributions.
    """
    index, ids, logps, scratch = [], [], [], Scratch()
    token_ids = events_of(token_ids, head.endings)

    def score(logits_RV: Tensor, tokens: slice) -> tuple[Tensor, Tensor]:
        logits_RV, log_sum, entropy = normalise_(logits_RV, scratch)
        here = token_ids[tokens]
        sampled = gather_logps(logits_RV, here.clamp_min(0))
        impossible = (here < 0) | (sampled <= torch.finfo(sampled.dtype).min)  # what `normalise_` made of −inf
        logp = (sampled - log_sum).masked_fill(impossible, -torch.inf)
        if topk is not None:
            place = slice(offset + tokens.start, offset + tokens.stop)
            # In a training step this is `step.divide_and_select`, which sets the gate's weights.
            rows = topk.wanted(logp, entropy, place).nonzero().squeeze(-1)
            wanted_RV = torch.index_select(logits_RV, 0, rows, out=scratch.for_rows(logits_RV, rows.numel()))
            top_logits, top_ids = wanted_RV[:, : topk.vocab_limit].topk(topk.k)
            index.append(rows + place.start)
            ids.append(top_ids.int())
            logps.append(top_logits - log_sum[rows].unsqueeze(-1))
        return logp, entropy

    logp, entropy = scan_vocabulary(score, states, head)
    if topk is None:
        nothing = torch.empty(0, dtype=torch.long, device=states.device)
        return (logp, entropy, nothing, nothing.view(0, 0).int(), logp.new_empty(0, 0)), states, head
    return (logp, entropy, torch.cat(index), torch.cat(ids), torch.cat(logps)), states, head
