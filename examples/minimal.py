"""TrOPD on one page: Trust Region On-Policy Distillation (arXiv 2606.01249) in plain PyTorch and Transformers.

    python examples/minimal.py

A small student learns column addition from a teacher that knows it, in a minute and a half of one CPU core: with seed 0
its greedy accuracy goes from 34% to 86% and its reverse KL from 0.30 to 0.23 nats a token. Each step:

    rollout   the student continues the beginning of a teacher's response; that beginning is annealed to nothing
    scores    both models read every token of the response
    regions   a token that the student wrote is trusted with probability min(π_T/π_S, 1); otherwise it is an outlier
    loss      trusted: K1 policy gradient     outlier: top-k forward KL     the teacher's beginning: β · NLL

Left out, and in the library: large vocabularies, micro-batches and ranks, checkpoints, several teachers, endings that
differ, other methods. `tests/test_minimal.py` holds the loss and the gradient of this file equal to the library's.

Letters: B rollouts, L tokens of prompt and response, T = L - 1 of them predicted, V vocabulary, K the teacher's top-k.
Logarithms are natural; π_T is the teacher, π_S the student. Entry t of every [B, T] tensor describes one token.
"""

import argparse
import math
import random
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

MODELS = Path(__file__).parents[1] / "src/tropd/proving_ground/models/family"
STUDENT, TEACHER = MODELS / "student", MODELS / "specialist-mathematics"

TOP_K, BETA = 64, 0.001  # of the outliers' forward KL; weight of the teacher's beginning; both as in the paper
STEPS = 100  # the paper: 200
PROMPTS, ROLLOUTS = 8, 4  # of a step, and of each prompt; the paper: 128, 4
MAX_LENGTH = 96  # of a response, in tokens; the paper: 8192
LEARNING_RATE = 3e-4  # constant; the paper: 5e-6, for models two thousand times as large

Ids = list[int]
NOBODY, BY_TEACHER, BY_STUDENT = 0, 1, 2  # who wrote a token: prompts and padding teach nothing


# ---------------------------------------------------------------------- the method


class Rollouts(NamedTuple):
    """Prompt, teacher's beginning and student's continuation of each row, padded on the right; both [B, L]."""

    tokens: Tensor
    author: Tensor


def prefix_length(step: int, steps: int, response_length: int) -> int:
    """How many tokens of the teacher's response the student starts from: min(⌊α L_max⌋, L), but not its last one.

    α falls from 1 to 0 by a cosine, so that training ends on the student's own responses alone.
    """
    alpha = 0.5 * (1 + math.cos(math.pi * step / steps))
    return max(0, min(math.floor(alpha * MAX_LENGTH), response_length - 1))


def read(model: PreTrainedModel, tokens_BL: Tensor) -> Tensor:
    """log π of every token that could have come, [B, T, V]. The state before a token predicts it: the shift is here."""
    return model(tokens_BL).logits[:, :-1].log_softmax(-1)


def tropd_loss(
    student: PreTrainedModel, teacher: PreTrainedModel, rollouts: Rollouts, uniforms_BT: Tensor
) -> tuple[Tensor, Tensor]:
    """The loss of a step, and which tokens were trusted, bool [B, T]; `uniforms_BT` are the gate's draws in [0, 1)."""
    chosen_BT1, author_BT = rollouts.tokens[:, 1:, None], rollouts.author[:, 1:]
    student_logps_BTV = read(student, rollouts.tokens)
    with torch.no_grad():
        teacher_logps_BTV = read(teacher, rollouts.tokens)
    student_logp_BT = student_logps_BTV.gather(-1, chosen_BT1).squeeze(-1)
    teacher_logp_BT = teacher_logps_BTV.gather(-1, chosen_BT1).squeeze(-1)

    # The trust region is speculative decoding's acceptance test. It is a number by now: no gradient flows through it.
    log_ratio_BT = teacher_logp_BT - student_logp_BT.detach()
    trusted_BT = uniforms_BT < log_ratio_BT.clamp(max=0).exp()

    # K1: log π_S - log π_T estimates KL(π_S‖π_T). Differentiated it teaches nothing, E[∇ log π_S] = 0, so its negative
    # is the advantage of a policy gradient. There is one update per batch: the importance ratio is 1, with a gradient.
    k1_BT = -(student_logp_BT - student_logp_BT.detach()).exp() * log_ratio_BT

    # KL(π_T‖π_S) on the teacher's top-k, differentiated directly. Its gradient is bounded however unlikely the teacher
    # finds the token, where K1's grows without limit.
    top = teacher_logps_BTV.topk(TOP_K)
    forward_kl_BT = (top.values.exp() * (top.values - student_logps_BTV.gather(-1, top.indices))).sum(-1)

    # Guidance: K1 of forward KL on the teacher's own tokens is their negative log-likelihood, but for a constant. While
    # nearly every token is the teacher's, Adam, which is nearly scale-free, makes full steps of it however small β is.
    guidance_BT = -BETA * student_logp_BT

    on_policy_BT = torch.where(trusted_BT, k1_BT, forward_kl_BT)
    loss_BT = torch.where(author_BT == BY_STUDENT, on_policy_BT, guidance_BT)
    return loss_BT[author_BT != NOBODY].mean(), trusted_BT & (author_BT == BY_STUDENT)


# ---------------------------------------------------------------------- writing


@torch.no_grad()
def write(model: PreTrainedModel, contexts: list[Ids], max_new_tokens: int, greedy: bool = False) -> list[Ids]:
    """What the model writes behind each context, its end-of-sequence token included."""
    length, pad, eos = max(map(len, contexts)), model.config.pad_token_id, model.config.eos_token_id
    left_padded = torch.tensor([[pad] * (length - len(context)) + context for context in contexts])
    mask = torch.tensor([[0] * (length - len(context)) + [1] * len(context) for context in contexts])
    # The whole softmax is sampled, and not Transformers' default of 50 tokens: what is scored must be what was sampled.
    sampling = {"do_sample": False} if greedy else {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    out = model.generate(left_padded, attention_mask=mask, max_new_tokens=max_new_tokens, **sampling)
    rows = out[:, length:].tolist()
    return [row[: row.index(eos) + 1] if eos in row else row for row in rows]


def pack(prompts: list[Ids], prefixes: list[Ids], continuations: list[Ids]) -> Rollouts:
    """Rows of token ids as tensors. Padding on the right is seen by no token, so no attention mask is needed."""
    rows = list(zip(prompts, prefixes, continuations, strict=True))
    tokens = [torch.tensor([*p, *x, *y]) for p, x, y in rows]
    author = [torch.tensor([NOBODY] * len(p) + [BY_TEACHER] * len(x) + [BY_STUDENT] * len(y)) for p, x, y in rows]
    return Rollouts(pad_sequence(tokens, batch_first=True), pad_sequence(author, batch_first=True))


def roll_out(student: PreTrainedModel, prompts: list[Ids], prefixes: list[Ids]) -> Rollouts:
    """The student goes on from each prompt and prefix, until both parts of the response make MAX_LENGTH tokens."""
    contexts = [p + x for p, x in zip(prompts, prefixes, strict=True)]
    continuations = write(student, contexts, MAX_LENGTH - min(map(len, prefixes)))
    return pack(prompts, prefixes, [y[: MAX_LENGTH - len(x)] for x, y in zip(prefixes, continuations, strict=True)])


# ---------------------------------------------------------------------- the task


def draw_problem(rng: random.Random) -> tuple[str, str]:
    """A sum, and how a right response to it ends. Of 10⁹ problems and more no two are likely to meet.

    add the columns. ones: 7 2 6. tens: 4 8 1. hundreds: 3 5 9.         total: 1 8 4 5
    """
    numbers, columns = rng.choice([(3, 3), (4, 3), (3, 4)])
    digits = [[rng.randrange(10) for _ in range(numbers)] for _ in range(columns)]
    names = ("ones", "tens", "hundreds", "thousands")[:columns]
    said = [f"{name}: {' '.join(map(str, column))}." for name, column in zip(names, digits, strict=True)]
    total = sum(sum(column) * 10**power for power, column in enumerate(digits))
    return " ".join(["add the columns.", *said]) + "\n", f"\ntotal: {' '.join(str(total))}<eos>"


@torch.no_grad()
def measure(student: PreTrainedModel, teacher: PreTrainedModel, prompts: list[Ids], answers: list[Ids]) -> str:
    """Greedy accuracy, and the exact KL(π_S‖π_T) in nats a token, where the student's own samples lead."""
    responses = write(student, prompts, MAX_LENGTH, greedy=True)
    correct = [response[-len(answer) :] == answer for response, answer in zip(responses, answers, strict=True)]
    rollouts = roll_out(student, prompts, [[] for _ in prompts])
    student_logps_BTV, teacher_logps_BTV = read(student, rollouts.tokens), read(teacher, rollouts.tokens)
    kl_BT = (student_logps_BTV.exp() * (student_logps_BTV - teacher_logps_BTV)).sum(-1)
    kl = kl_BT[rollouts.author[:, 1:] == BY_STUDENT].mean()
    return f"accuracy {sum(correct) / len(correct):.1%}   reverse KL {kl:.3f} nats a token"


# ---------------------------------------------------------------------- training


def main(seed: int, steps: int = STEPS, num_test: int = 200) -> None:
    torch.set_num_threads(1)  # tensors this small wait longer for a second thread than it helps them
    torch.manual_seed(seed)
    rng = random.Random(seed)
    tokenizer = AutoTokenizer.from_pretrained(STUDENT)
    student, teacher = (AutoModelForCausalLM.from_pretrained(path) for path in (STUDENT, TEACHER))
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE, weight_decay=0.1)

    test = [[tokenizer(text).input_ids for text in draw_problem(rng)] for _ in range(num_test)]
    test_prompts, answers = map(list, zip(*test, strict=True))
    prompts = [tokenizer(draw_problem(rng)[0]).input_ids for _ in range(steps * PROMPTS)]
    # The teacher writes once, beforehand. Its end-of-sequence token is dropped: what is left to the student has none.
    responses = [[i for i in ids if i != tokenizer.eos_token_id] for ids in write(teacher, prompts, MAX_LENGTH)]
    print(f"before      {measure(student, teacher, test_prompts, answers)}")

    for step in range(steps):
        rows = [row for row in range(step * PROMPTS, (step + 1) * PROMPTS) for _ in range(ROLLOUTS)]
        prefixes = [responses[row][: prefix_length(step, steps, len(responses[row]))] for row in rows]
        rollouts = roll_out(student, [prompts[row] for row in rows], prefixes)
        loss, trusted = tropd_loss(student, teacher, rollouts, torch.rand(rollouts.tokens[:, 1:].shape))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        if step % 10 == 0 or step == steps - 1:
            prefix, written = (int((rollouts.author == author).sum()) for author in (BY_TEACHER, BY_STUDENT))
            trust, total = int(trusted.sum()), prefix + written  # trust is a fraction of what the student wrote
            print(
                f"step {step:3d}   loss {loss:7.4f}   trust fraction {trust / written:.3f}   outlier share "
                f"{(written - trust) / total:.3f}   prefix {prefix / len(rows):4.1f} of {total / len(rows):4.1f} tokens"
            )
    print(f"after       {measure(student, teacher, test_prompts, answers)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    main(parser.parse_args().seed)
