"""It learns: a tiny student reaches a tiny teacher, measured exactly on states that its training does not sample."""

import pytest
import torch

from training import tiny
from training.tiny import build, clone, ids

VOCABULARY = 24
STATES = [ids("a"), ids("b"), ids("c"), ids("d"), ids("e"), ids("f")]


def exact_kl(student, teacher) -> tuple[float, float]:
    """KL(student‖teacher) and KL(teacher‖student), in nats, averaged over next-token states two tokens deep."""
    contexts = torch.tensor([[*state, token] for state in STATES for token in range(4, VOCABULARY)])
    with torch.no_grad():
        ours, theirs = (model(input_ids=contexts).logits.double().log_softmax(-1) for model in (student, teacher))
    reverse = (ours.exp() * (ours - theirs)).sum(-1).mean()
    forward = (theirs.exp() * (theirs - ours)).sum(-1).mean()
    return float(reverse), float(forward)


@pytest.fixture(scope="module")
def pair():
    teacher = tiny.llama(seed=11, rows=VOCABULARY * 3, width=16, sharpness=0.35)
    student = tiny.llama(seed=12, rows=VOCABULARY * 3, width=16, sharpness=0.1)
    return student, teacher


@pytest.mark.parametrize("method", ["opd", "tropd", "gkd"])
def test_a_tiny_student_reaches_a_tiny_teacher(tmp_path, pair, method):
    student, teacher = clone(pair[0]), clone(pair[1])
    before = exact_kl(student, teacher)
    trainer = build(
        tmp_path,
        student,
        teacher,
        method,
        rows=[{"prompt": tiny.tokenizer().decode(state)} for state in STATES] * 8,
        max_steps=60,
        per_device_train_batch_size=48,
        num_generations=8,
        max_completion_length=4,
        learning_rate=1e-2,
        weight_decay=0.0,
        max_grad_norm=1.0,
        shuffle_dataset=True,
    )
    trainer.train()
    after = exact_kl(student, clone(teacher))
    print(method, before, after)
    assert after[0] < 0.3 * before[0] and after[1] < 0.3 * before[1]
