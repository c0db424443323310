"""Do the log-probabilities that we compute agree with the model's own? Checked once, before anything is learned.

Scores come from the states before the output layer and from that layer's weights, past the model's own forward. Where
a model has a layer in between, a softcap by another name, a divisor or a forward of its own, that would be another
model. So both are compared, in the run's own precision, student and teachers, wrapped and sharded as they are; and a
student in training mode is read twice, since noise that is not switched off makes each pass another model.
"""

import random
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ...models.files import context_length
from ...models.hidden_states import read_output_layer
from ...teacher.adapter_base import BaseTeacher, without_adapter
from ...teacher.names import teacher_phrase
from .errors import NotFinite
from .faults import checkpoint_phrase

NUM_TOKENS = 12
"""Positions that are compared."""
LONGEST = 256
"""Tokens that are read for them: noise and scales may begin at a position."""
ROUNDINGS = 2.0
"""Roundings of the largest logit by which two ways of computing the same log-probability may differ."""
SLACK = 1e-4
"""Nats, for sums of another order in float32."""
LARGEST_WEIGHT = 1e6
"""No language model has a weight this large; norms hide one from the logits."""
ABSURD = -1e5
"""Nats: a student that finds some token as unlikely as that is ruined, whatever its numbers."""
MORE_PASSES = 30
"""In training mode, for a model that draws random numbers: noise in one pass of five is missed once in 1,000 runs."""
NOISY = ("dropout", "jitter", "layerdrop")
"""What the settings of noise are called, in modules and configurations."""


def silence(model: nn.Module) -> None:
    """Set dropout and jitter that a model keeps as numbers to 0; TRL does so only for `nn.Dropout`."""
    for module in model.modules():
        for name, value in vars(module).items():
            if _is_noise(name, value):
                setattr(module, name, 0.0)


def check_student(trainer: Any) -> None:
    """Compare the student's own logits with what we compute from its states, and two passes in training mode.

    Raises:
        ValueError: with how far they differ, and what to do.
    """
    model = trainer.model
    ids = _some_tokens(trainer._student_vocab_size, trainer.accelerator.device, _length(trainer, model))

    def forward(**inputs: Any) -> Any:
        with trainer.accelerator.autocast():
            return model(**inputs)

    training = model.training
    model.eval()
    try:
        read = _agreeing(forward, _base(model), ids, "the student")
        model.train()
        if trainer.args.disable_dropout:
            _check_quiet(trainer, forward, ids, read)
    finally:
        model.train(training)


def check_teachers(trainer: Any) -> None:
    """The same for every teacher, which is always in evaluation mode.

    Raises:
        ValueError: likewise.
    """
    seen = set()
    for name, teacher in trainer.teachers.by_name.items():
        if id(teacher) in seen or teacher.model is None:  # another engine's scores are its own
            continue
        seen.add(id(teacher))
        ids = _some_tokens(teacher.vocab_size, teacher.device, _length(trainer, teacher.model))
        if isinstance(teacher, BaseTeacher):
            with without_adapter(teacher.model):
                _agreeing(teacher.forward, _base(teacher.model), ids, teacher_phrase(name))
        else:
            _agreeing(teacher.forward, _base(teacher.model), ids, teacher_phrase(name))


def odd_buffers(model: nn.Module) -> set[str]:
    """Buffers with an entry that is not finite, as masks have them."""
    buffers = ((name, local_part(buffer)) for name, buffer in model.named_buffers() if buffer.is_floating_point())
    return {name for name, buffer in buffers if not buffer.float().isfinite().all()}


def check_weights(trainer: Any, step: int, odd_before: Collection[str] = ()) -> None:
    """Refuse to keep a ruined student, by its weights and buffers and by what it computes.

    `odd_before` is what `odd_buffers` found before training.

    Raises:
        NotFinite: with the step, and the checkpoint there is to go back to.
    """
    device = trainer.accelerator.device
    sizes = [local_part(p).abs().amax() for p in trainer.model.parameters() if local_part(p).numel()]
    broken = ~(torch.stack([size.float().cpu() for size in sizes]) < LARGEST_WEIGHT).all()  # NaN is not less
    training = trainer.model.training
    trainer.model.eval()
    try:
        with torch.no_grad(), trainer.accelerator.autocast():
            logps = _read(trainer.model, _some_tokens(trainer._student_vocab_size, device))
    finally:
        trainer.model.train(training)
    broken |= bool(odd_buffers(trainer.model) - set(odd_before))
    broken = broken.to(device) | logps.isnan().any() | ((logps < ABSURD) & logps.isfinite()).any()
    if trainer.ranks.max(broken.int().view(1))[0]:
        raise NotFinite(
            f"the student's weights are not finite, or too large to compute with, after step {step}, so it is not "
            f"saved; {checkpoint_phrase(trainer.args.output_dir)}. Lower the learning rate."
        )


def check_moments(trainer: Any, step: int) -> None:
    """Refuse to keep an optimiser whose next step would ruin the weights.

    Raises:
        NotFinite: likewise.
    """
    states = getattr(trainer.optimizer, "state", {}).values()
    tensors = [value for state in states if isinstance(state, dict) for value in state.values()]
    moments = [local_part(one) for one in tensors if isinstance(one, Tensor) and one.is_floating_point()]
    broken = torch.tensor([int(not all(bool(one.isfinite().all()) for one in moments))])
    if trainer.ranks.max(broken)[0]:
        raise NotFinite(
            f"the optimiser's state is not finite after step {step}, and its next step would ruin the weights, so it "
            f"is not saved; {checkpoint_phrase(trainer.args.output_dir)}. Lower the learning rate."
        )


def local_part(parameter: Tensor) -> Tensor:
    """The part of a parameter that is on this process."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def _base(model: Any) -> Any:
    return getattr(model, "get_base_model", lambda: model)()


def _some_tokens(vocab_size: int, device: Any, length: int = NUM_TOKENS) -> Tensor:
    return (torch.arange(1, length + 1, device=device) * 7919 % vocab_size)[None]


def _length(trainer: Any, model: Any) -> int:
    """About a prompt and a response, within the model's positions."""
    longest = min(LONGEST, NUM_TOKENS + trainer.max_completion_length)
    return min(longest, context_length(_base(model).config) or longest)


def _sample_positions(values: Tensor) -> Tensor:
    """At `NUM_TOKENS` positions from the first to the last of [L, …], so that a long reading takes no more memory."""
    return values[torch.linspace(0, len(values) - 1, min(NUM_TOKENS, len(values)), device=values.device).long()]


@torch.no_grad()
def _agreeing(forward: Callable, base: Any, ids: Tensor, who: str) -> Tensor:
    """What is read of the model, [NUM_TOKENS, V] log-probabilities, once that agrees with its own logits.

    Where it does not at first, the states are taken from before the output layer, which the model's own forward then
    leads to: other layers in between are done.
    """
    own = _sample_positions(forward(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0])
    worst = 0.0
    for by_output_layer in (False, True):
        read_output_layer(base, by_output_layer)
        try:
            read, precision = _read_with_precision(forward, ids)
        except (AttributeError, TypeError) as error:  # no states where they are looked for: the other way is left
            if not by_output_layer:
                continue
            what = f"reading it fails ({type(error).__name__}: {error})"
            raise ValueError(_cannot_read(who, base, what)) from error
        apart = _apart(own, read, precision)
        if apart is None:
            return read
        worst = apart
    raise ValueError(_cannot_read(who, base, f"they lie up to {worst:.3g} nats apart"))


def _cannot_read(who: str, model: Any, what: str) -> str:
    return (
        f"{who} ({type(model).__name__}) gives log-probabilities that differ from those of its last states and output "
        f"layer: {what}. Its forward changes the logits in a way that tropd does not know, so every score would be "
        "wrong. Choose a model of another family, or report this one."
    )


def _read(forward: Callable, ids: Tensor) -> Tensor:
    return _read_with_precision(forward, ids)[0]


def _read_with_precision(forward: Callable, ids: Tensor) -> tuple[Tensor, torch.dtype]:
    """The log-probabilities that we compute, and the dtype in which the model itself would compute logits."""
    return forward(  # type: ignore[no-any-return]
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        on_hidden=lambda hidden, head: (
            head.logits(_sample_positions(hidden.flatten(0, -2))).log_softmax(-1),
            head.weight.dtype,
        ),
    )


def _apart(own_logits: Tensor, read_logps: Tensor, precision: torch.dtype) -> float | None:
    """How far the two differ, in nats; `None` where that is rounding."""
    own = own_logits.float().log_softmax(-1)
    if own.shape != read_logps.shape:
        return float("inf")
    finite = own_logits[own_logits.isfinite()].abs()
    rounding = max(torch.finfo(dtype).eps for dtype in (own_logits.dtype, precision))
    allowed = SLACK + ROUNDINGS * rounding * (float(finite.max()) if finite.numel() else 0.0)
    apart = float((own - read_logps.float()).nan_to_num(0.0).abs().max())
    return apart if apart > allowed else None


@torch.no_grad()
def _check_quiet(trainer: Any, forward: Callable, ids: Tensor, read: Tensor) -> None:
    """Compare passes in training mode with the one in evaluation: two, and more where one has drawn random numbers."""
    with same_random_states(ids.device):
        before = _generators(ids.device)
        passes = [_read(forward, ids) for _ in range(2)]
        draws = torch.tensor([int(_generators(ids.device) != before)])
        if trainer.ranks.max(draws)[0]:  # of all, as shards make their passes together
            passes += [_read(forward, ids) for _ in range(MORE_PASSES)]
    apart = max(float((logps - read).nan_to_num(0.0).abs().max()) for logps in passes)
    if apart <= SLACK:
        return
    config = _base(trainer.model).config.get_text_config().to_dict()
    named = {name: value for name, value in config.items() if _is_noise(name, value)}
    settings = ", ".join(f"{name}: 0.0" for name in named) or "the setting that adds it, by its name: 0.0"
    raise ValueError(
        f"the student gives different results in training mode and in evaluation mode, by up to {apart:.3g} nats, "
        "although disable_dropout is True: noise in its layers makes rollouts, scores and update three models. "
        f"Set model_init_kwargs: {{{settings}}}."
    )


def _generators(device: torch.device) -> tuple[Any, ...]:
    """The states of the generators that a forward pass may draw from, to be compared."""
    states = [torch.get_rng_state()]
    states += [] if device.type == "cpu" else [torch.get_device_module(device).get_rng_state(device)]
    numpys = str(np.random.get_state())  # its place among its words, and the first and last of these
    return (random.getstate(), numpys, *(state.numpy().tobytes() for state in states))


@contextmanager
def same_random_states(device: torch.device) -> Iterator[None]:
    """After the block all generators continue as if it had not run."""
    ours, numpys = random.getstate(), np.random.get_state()
    on_device = [] if device.type == "cpu" else [device]
    try:
        with torch.random.fork_rng(on_device, device_type="cuda" if device.type == "cpu" else device.type):
            yield
    finally:
        random.setstate(ours)
        np.random.set_state(numpys)


def _is_noise(name: str, value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
    return number and any(word in name for word in NOISY)
