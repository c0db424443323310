"""TRL's settings whose bad values would be silently accepted, or fail elsewhere without the field's name."""

import importlib.util
import math
import os
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers.trainer_pt_utils import AcceleratorConfig

from ..method_settings import check_ranges
from .faults import in_a_line, is_out_of_memory

_OPTIONAL_COUNT = (lambda n: n is None or n >= 1, "use at least 1, or remove it")
_RATE = (lambda rate: 0 <= rate < 1, "a moving average keeps a share of the past, in [0, 1)")
_SEED = (lambda n: n is None or 0 <= n < 2**32, "a seed is a whole number from 0 to 4294967295")
_AT_LEAST_ONE = (lambda n: n >= 1, "use at least 1")
_PORT = (lambda n: 0 <= n < 2**16, "a port is a whole number from 0 to 65535")
_EVERY = (lambda n: n is None or n > 0, "use a number of steps, or a share of the run between 0 and 1")

RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "num_generations": (lambda n: n is not None and n >= 1, "a prompt needs at least 1 rollout"),
    "num_iterations": (lambda n: n >= 1, "each rollout is learned from at least once"),
    "gradient_accumulation_steps": (lambda n: n >= 1, "a step has at least 1 micro-batch"),
    "per_device_train_batch_size": (lambda n: n >= 1, "a micro-batch has at least 1 sequence"),
    "max_completion_length": (lambda n: n is None or n >= 1, "a response needs room for at least 1 token"),
    "max_steps": (lambda n: n == -1 or n >= 1, "use at least 1 step, or remove it to use num_train_epochs"),
    "learning_rate": (lambda rate: rate >= 0, "it cannot be negative; the paper uses 5e-6"),
    "neftune_noise_alpha": (
        lambda alpha: not alpha,
        "it adds noise to the embeddings in every pass of the student, so rollouts, scores and update would come from "
        "different models, and a student that is its own teacher would have a gradient; remove it",
    ),
    "top_p": (lambda share: 0 < share <= 1, "it is a share of the softmax that is kept; leave it at 1.0"),
    "temperature": (lambda t: t > 0, "rollouts are samples of the student's softmax; use 1.0, as the papers do"),
    "seed": _SEED,
    "data_seed": _SEED,
    "num_train_epochs": (lambda n: 0 < n < math.inf, "use a number above 0, or set max_steps"),
    "max_grad_norm": (lambda norm: norm is None or norm >= 0, "a gradient's norm is at least 0; 0 clips nothing"),
    "weight_decay": (lambda decay: 0 <= decay < math.inf, "weights can only decay towards zero; use 0 for none"),
    "adam_beta1": _RATE,
    "adam_beta2": _RATE,
    "adam_epsilon": (lambda number: 0 <= number < math.inf, "it is added to a denominator; use 1e-8"),
    "warmup_steps": (lambda n: n is None or n >= 0, "use a number of steps, or a share of the run between 0 and 1"),
    "optim_args": (
        lambda text: not text or all("=" in part for part in text.split(",")),
        "write it like eps=1e-6,foreach=false",
    ),
    "steps_per_generation": _OPTIONAL_COUNT,
    "generation_batch_size": _OPTIONAL_COUNT,
    "save_total_limit": (lambda n: n is None or n >= 1, "keep at least 1, or remove it to keep all"),
    "per_device_eval_batch_size": (lambda n: n >= 1, "a batch has at least 1 sequence"),
    "num_generations_eval": _OPTIONAL_COUNT,
    "eval_accumulation_steps": _OPTIONAL_COUNT,
    "eval_delay": (lambda n: n >= 0, "use a number of steps or epochs before the first evaluation"),
    "label_smoothing_factor": (lambda share: share == 0, "distillation has no labels to smooth; remove it"),
    "router_aux_loss_coef": (lambda weight: weight is None or weight >= 0, "use 0 for none"),
    "top_k": (lambda k: k is None or k >= -1, "use 0 for all tokens, or how many are kept"),
    "min_p": (lambda share: share is None or 0 <= share <= 1, "it is a share of the highest probability, in [0, 1]"),
    "repetition_penalty": (lambda factor: factor is None or factor > 0, "logits are divided by it; 1 leaves them"),
    "pad_to_multiple_of": (
        lambda n: n in (None, "auto") or (str(n).isdecimal() and int(n) >= 1),
        "use auto, or a number of at least 1",
    ),
    "max_tool_calling_iterations": _OPTIONAL_COUNT,
    "num_completions_to_print": _OPTIONAL_COUNT,
    "ending_ids": (
        lambda ids: ids is None or (len(ids) > 0 and all(0 <= one < 2**31 for one in ids)),
        "name token ids, which count from 0, or remove it to use those that the models name",
    ),
    "ddp_bucket_cap_mb": _OPTIONAL_COUNT,
    "ddp_timeout": (lambda seconds: seconds >= 1, "use a number of seconds"),
    "vllm_server_port": _PORT,
    "vllm_group_port": _PORT,
    "vllm_server_timeout": (lambda seconds: seconds > 0, "use a number of seconds"),
    "vllm_gpu_memory_utilization": (lambda share: 0 < share <= 1, "it is a share of each GPU, in (0, 1]"),
    "vllm_max_model_length": _OPTIONAL_COUNT,
    "vllm_tensor_parallel_size": _AT_LEAST_ONE,
    "dataloader_num_workers": (lambda n: n >= 0, "use 0 to read the data in the process itself"),
}
EVERY = {"save_steps": "save_strategy", "eval_steps": "eval_strategy", "logging_steps": "logging_strategy"}
"""Read where their strategy is `steps`."""

PACKAGES = {"deepspeed": "deepspeed", "use_liger_kernel": "liger_kernel", "use_vllm": "vllm"}
CHECKPOINTING = ("gradient_checkpointing", "activation_checkpointing")
"""TRL's name and Transformers' newer one; each has `…_kwargs`."""

LOADERS = ("modeling_utils.py", "auto_factory.py")
"""Where Transformers loads models; tokenizers are loaded elsewhere."""

_QUOTED = re.compile(r"[Uu]nexpected keyword arguments?:? '?([^',]*)|for field '([^']*)'")
"""How Python, PyTorch and Hugging Face name what they do not take."""


def check_host_settings(args: Any) -> None:
    """Refuse invalid values of the host's fields, before anything is loaded.

    Raises:
        ValueError: with the field, its value, why, and what to type.
    """
    check_host_values(args)
    _check_installed(args, PACKAGES)
    for name in ("model_init_kwargs", "teacher_model_init_kwargs"):
        if "output_loading_info" in _keys(getattr(args, name)):
            raise ValueError(
                f"{name} has 'output_loading_info', which makes loading return more than a model. Remove it."
            )
    _check_best(args)
    _check_batches(args)
    _check_casting(args)


def check_host_values(args: Any) -> None:
    """Refuse values that are invalid whatever the other fields are; see `check_host_settings`."""
    check_ranges(args, RANGES)
    check_ranges(args, {name: _EVERY for name, strategy in EVERY.items() if _value(args, strategy) == "steps"})
    _check_installed(args, ("deepspeed",))  # which the host asks for while it reads its fields


def _check_installed(args: Any, names: Iterable[str]) -> None:
    for name in names:
        package = PACKAGES[name]
        if getattr(args, name, None) and importlib.util.find_spec(package) is None:
            raise ValueError(
                f"{name} is {getattr(args, name)!r:.100}, but the package {package} is not installed. Install it "
                f"(pip install {package.replace('_', '-')}), or remove {name}."
            )


def _check_best(args: Any) -> None:
    if _value(args, "eval_strategy") != "no":
        return
    name = "load_best_model_at_end" if args.load_best_model_at_end else "save_strategy"
    if name == "load_best_model_at_end" or _value(args, name) == "best":
        raise ValueError(
            f"{name} is {_value(args, name)!r}, but eval_strategy is 'no', and without an evaluation no model is the "
            f"best. Set eval_strategy: steps (with eval_steps, and prompts to evaluate on), or remove {name}."
        )


def _check_casting(args: Any) -> None:
    half = next((name for name in ("bf16", "fp16") if getattr(args, name)), None)
    if args.use_transformers_continuous_batching and half and args.master_weights:
        raise ValueError(
            f"use_transformers_continuous_batching is True and {half} is True: TRL then casts the weights themselves "
            "to half precision before each rollout, and updates of about the learning rate round away. Set "
            f"{half}: false, or use_vllm; with master_weights: false they are trained as they are."
        )


def _check_batches(args: Any) -> None:
    """A batch is a list of rows, of which each process reads its own; the trainer cuts it into micro-batches."""
    given = _accelerator(args)
    gathers = "a batch is a list of rows, not tensors, so one process cannot hand them out to the others"
    reasons = {
        "dispatch_batches": given.get("dispatch_batches") and gathers,
        "split_batches": given.get("split_batches") and "each process reads whole rollout batches of its own",
        "even_batches": given.get("even_batches") is False
        and int(os.environ.get("WORLD_SIZE", "1")) > 1
        and "a process without a last batch would leave the others waiting for it",
    }
    for name, why in reasons.items():
        if why:
            raise ValueError(f"accelerator_config has {name}: {given[name]}, but {why}. Remove it.")
    if (given.get("gradient_accumulation_kwargs") or {}).get("num_steps") is not None:
        raise ValueError(
            "accelerator_config has gradient_accumulation_kwargs with num_steps, which the rollout batches would not "
            "know of. Set gradient_accumulation_steps instead."
        )
    if args.remove_unused_columns:
        raise ValueError(
            "remove_unused_columns is True, which would drop every column except the prompt: teacher responses, "
            "teacher prompts, and what rewards read. Remove it."
        )
    if args.dataloader_persistent_workers and not args.dataloader_num_workers:
        raise ValueError(
            "dataloader_persistent_workers is True, but dataloader_num_workers is 0: there is no worker to keep. "
            "Remove one of the two."
        )


def _accelerator(args: Any) -> dict[str, Any]:
    """`accelerator_config` as a mapping; empty while it is the name of a file."""
    given = getattr(args, "accelerator_config", None)
    given = given.to_dict() if isinstance(given, AcceleratorConfig) else given
    return dict(given) if isinstance(given, Mapping) else {}


def _value(args: Any, name: str) -> Any:
    return getattr(getattr(args, name), "value", getattr(args, name))


# ---------------------------------------------------------------------- activation checkpointing


def can_checkpoint(model: Any) -> bool:
    """Can a model recompute activations in the backward pass? `model` may be a class, which says less."""
    modules = [] if isinstance(model, type) else list(model.modules())
    marked = not modules or any(hasattr(module, "gradient_checkpointing") for module in modules)
    return bool(getattr(model, "supports_gradient_checkpointing", False)) and marked


def settle_checkpointing(args: Any, model: Any, asked: Mapping[str, Any]) -> str | None:
    """Switch activation checkpointing off for a model that has none; TRL switches it on by itself.

    `model` may be the class of the student; `asked` are fields that somebody set.

    Returns:
        A warning, where it was switched off.

    Raises:
        ValueError: somebody asked for it.
    """
    if not args.gradient_checkpointing or can_checkpoint(model):
        return None
    kind = getattr(model, "__name__", type(model).__name__)
    fields = (*CHECKPOINTING, *(f"{name}_kwargs" for name in CHECKPOINTING))
    name = next((name for name in fields if asked.get(name)), None)
    if name is not None:
        raise ValueError(
            f"{name} is {asked[name]!r}, but the student is a {kind}, whose architecture does not support activation "
            "checkpointing. Set gradient_checkpointing: false."
        )
    for name in CHECKPOINTING:
        if hasattr(args, name):  # Transformers before 5.23 has one name
            setattr(args, name, False)
    return (
        f"The student is a {kind}, whose architecture does not support activation checkpointing: "
        "gradient_checkpointing is off, and activations take more memory."
    )


# ---------------------------------------------------------------------- other people's exceptions


@contextmanager
def field_guard(settings: Mapping[str, Any], loading: str = "") -> Iterator[None]:
    """Turn what a library raises about the inside of a field (a key that it does not accept, a missing file,
    a value that its own reading of the field trips over) into a sentence that begins with the field; everything else
    propagates.

    `loading` is the field that a model is loaded with, where one is loaded.
    """
    try:
        yield
    except Exception as error:
        sentence = (
            _about_field(error, settings)
            or _about_reading(error, settings)
            or _about_loading(error, loading, settings.get(loading))
        )
        if sentence is None:
            raise
        raise ValueError(sentence) from error


@contextmanager
def model_guard(given: Mapping[str, Any]) -> Iterator[None]:
    """Name the argument that a missing model, or tokenizer, was given by.

    `given` has what each argument was given; text is what is loaded.

    Raises:
        ValueError: with the argument, and the library's reason.
    """
    try:
        yield
    except OSError as error:
        named = " or ".join(f"{name} ({text!r:.100})" for name, text in given.items() if isinstance(text, str))
        if error.errno is not None or not named:  # of the file system, not of a library's search
            raise
        raise ValueError(
            f"{named} cannot be loaded: {in_a_line(error)}. Name a folder with model and tokenizer, or a Hub name."
        ) from error


def _about_loading(error: Exception, field: str, value: Any) -> str | None:
    """A loader's failure is probably the field's fault, unless files or memory are."""
    codes = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    loads = any(code.co_name == "from_pretrained" and code.co_filename.endswith(LOADERS) for code in codes)
    if not value or not loads or isinstance(error, OSError) or is_out_of_memory(error):
        return None
    return f"{field} is {value!r:.200}, and a model cannot be loaded with that ({in_a_line(error)}). Correct it."


def _about_field(error: Exception, settings: Mapping[str, Any]) -> str | None:
    if not isinstance(error, (TypeError, OSError, ValueError, StrictDataclassError)):
        return None
    file = getattr(error, "filename", None)
    quoted = _QUOTED.search(str(error))
    key = next((group for group in quoted.groups() if group is not None), None) if quoted else None
    for name, value in sorted(settings.items(), key=lambda item: item[0].startswith("activation_")):  # an alias
        if file is not None and isinstance(value, str) and value == str(file):
            return f"{name} is {value!r}, which cannot be read or written: {getattr(error, 'strerror', error)}."
        if key is not None and key in _keys(value):
            return f"{name} has {key!r}, which is not accepted there ({in_a_line(error)}). Remove or correct it."
    return None


def _about_reading(error: Exception, settings: Mapping[str, Any]) -> str | None:
    """A value that the host's `__post_init__` failed on without naming its field: the line that failed names it."""
    if not isinstance(error, (AttributeError, TypeError, ValueError)):
        return None
    lines = [frame.line or "" for frame in traceback.extract_tb(error.__traceback__) if frame.name == "__post_init__"]
    read = [name for name in re.findall(r"self\.(\w+)", lines[-1]) if name in settings] if lines else []
    if not read or re.search(rf"\b{read[-1]}\b", str(error)):
        return None
    name = read[-1]
    return f"{name} is {settings[name]!r:.200}, which cannot be read ({in_a_line(error)}). Remove or correct it."


def _keys(value: Any) -> Iterator[str]:
    """The keys of a mapping, and of those inside it; the accelerator's configuration is one."""
    if isinstance(value, AcceleratorConfig):
        value = value.to_dict()
    if isinstance(value, Mapping):
        for key, inside in value.items():
            yield str(key)
            yield from _keys(inside)
