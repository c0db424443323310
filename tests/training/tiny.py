"""Tiny real models, a tiny tokenizer, scripted sampling, and one call that trains and tells what happened.

Nothing is downloaded and nothing is mocked between the script and the gradient: the models are Transformers models of
a few thousand parameters, and a scripted sampler stands exactly where TRL's own sampler stands.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    TrainerCallback,
)
from trl import GRPOTrainer

from tropd import TrOPDConfig, TrOPDTrainer
from tropd.training import step
from tropd.training.records import Rollout

PAD, BOS, EOS, UNKNOWN = 0, 1, 2, 3
VOCABULARY_ROWS = 64
"""Rows of the models' heads; the tokenizer uses fewer, as padded vocabularies do."""

# User and assistant turns in letters that the tokenizer knows; `enable_thinking` decides how a response starts.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'][0] }}:{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %};{% endfor %}"
    "{% if add_generation_prompt %}a:{% if enable_thinking is defined and enable_thinking %}t{% endif %}{% endif %}"
)

PROMPTS = ("ab=", "cde+f=", "g=", "hi+jk+l=")

ROWS = [{"prompt": f"{first}+{second}="} for first in "abcd" for second in "ef"]
"""Four steps of two prompts each."""


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Characters, and the merges `ab`, `cd` and `abcd`: the ids of `a`, `b` decode to text that encodes as `ab`."""
    return _tokenizer(characters="abcdefghijklmnopqrstuvwxyz0123456789 =+;:?<>/.")


def _tokenizer(characters: str) -> PreTrainedTokenizerFast:
    specials = ["<pad>", "<bos>", "<eos>", "<unk>"]
    tokens = [*specials, *characters, "ab", "cd", "abcd"]
    backend = Tokenizer(
        models.BPE(
            vocab={token: number for number, token in enumerate(tokens)},
            merges=[("a", "b"), ("c", "d"), ("ab", "cd")],
            unk_token="<unk>",
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Split(pattern=";", behavior="isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def ids(text: str) -> list[int]:
    return tokenizer()(text, add_special_tokens=False)["input_ids"]


def llama(seed: int, rows: int = VOCABULARY_ROWS, width: int = 16, sharpness: float = 0.4) -> LlamaForCausalLM:
    """A random Llama; `sharpness` is the standard deviation of its weights, so that distributions are far from flat."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=rows,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=512,
            initializer_range=sharpness,
            tie_word_embeddings=False,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=EOS,
        )
    )


def qwen(seed: int, rows: int = VOCABULARY_ROWS, width: int = 16, sharpness: float = 0.4) -> Qwen3ForCausalLM:
    """A random Qwen3 with tied embeddings."""
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=rows,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            max_position_embeddings=512,
            initializer_range=sharpness,
            tie_word_embeddings=True,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=EOS,
        )
    )


def clone(model: PreTrainedModel) -> PreTrainedModel:
    """A fresh model with the same weights. (A deep copy of a model that has trained would share patched methods.)"""
    twin = type(model)(copy.deepcopy(model.config))
    twin.load_state_dict(model.state_dict())
    return twin


def same_dataset(rows: Sequence[dict[str, Any]] | None = None) -> Dataset:
    return Dataset.from_list(list(rows) if rows is not None else [{"prompt": prompt} for prompt in PROMPTS])


# ---------------------------------------------------------------------- scripted sampling

Script = Callable[[list[list[int]]], Any]
"""Contexts (prompt ⊕ prefix, as ids) to continuations, or to (continuations, their log-probabilities)."""


class ScriptedSampler(GRPOTrainer):
    """Stands in the place of TRL's sampler, below `TrOPDTrainer`: a script decides what the student 'writes'."""

    script: Script | None = None
    contexts_seen: list[list[list[int]]]
    budgets_seen: list[int]

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False):
        self.contexts_seen = [*getattr(self, "contexts_seen", []), [list(context) for context in prompt_ids]]
        self.budgets_seen = [*getattr(self, "budgets_seen", []), self.generation_config.max_new_tokens]
        if self.script is None:
            return super()._generate_single_turn(
                prompt_ids, images, multimodal_fields, num_generations, has_tool_images
            )
        written = self.script(prompt_ids)
        return written if isinstance(written, tuple) else (written, None)


class ScriptedTrainer(TrOPDTrainer, ScriptedSampler):
    """`TrOPDTrainer` whose `super()` finds the script before it finds TRL's sampler."""


def replay(*batches: list[list[int]]) -> Script:
    """Recorded continuations, one batch after the other, from the start again at the end."""
    calls = [0]

    def script(contexts: list[list[int]]) -> list[list[int]]:
        batch = batches[calls[0] % len(batches)]
        calls[0] += 1
        assert len(batch) == len(contexts), f"{len(batch)} recorded, {len(contexts)} asked for"
        return [list(row) for row in batch]

    return script


def recorded(num_rows: int, longest: int = 10, seed: int = 0) -> list[list[int]]:
    """Random continuations of different lengths; every second one ends with EOS, the others are cut off."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for row in range(num_rows):
        ended = row % 2 == 0
        length = 2 + (row * 3) % (longest - 2) if ended else longest
        tokens = torch.randint(4, 50, (length - ended,), generator=generator).tolist()
        rows.append([*tokens, EOS] if ended else tokens)
    return rows


def roll_out(trainer: TrOPDTrainer, rows: Sequence[dict[str, Any]]) -> list[Rollout]:
    """What a step of the trainer would begin with."""
    return step.make_rollouts(trainer.step_setup(), trainer.rollout_stage, rows)[1]


def score_student(trainer: TrOPDTrainer, rollouts: Sequence[Rollout]) -> step.StudentScores:
    """A pass of the student, whatever the sampler has noted."""
    return step.score_rollouts(replace(trainer.step_setup(), trusts_sampler=False), rollouts)


# ---------------------------------------------------------------------- training


@dataclass
class Step:
    """What one optimiser step saw."""

    gradients: dict[str, Tensor]
    weights: dict[str, Tensor]


class Recorder(TrainerCallback):
    """Gradients before each optimiser step and weights after it."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._gradients: dict[str, Tensor] = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self._gradients = {
            name: full(torch.zeros_like(p) if p.grad is None else p.grad).clone()
            for name, p in model.named_parameters()
            if p.requires_grad
        }

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.steps.append(Step(self._gradients, weights_of(model)))


def weights_of(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: full(p).clone() for name, p in model.named_parameters()}


def full(tensor: Tensor) -> Tensor:
    """A tensor without its graph, and whole where FSDP2 or ZeRO-3 shards it (then every rank must ask)."""
    if hasattr(tensor, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([tensor]):
            return tensor.detach().clone()
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def config(directory: Path | str, method: str = "tropd", **settings: Any) -> TrOPDConfig:
    """Four rollouts of each of two prompts in one micro-batch, on the CPU, in float32, in silence."""
    defaults: dict[str, Any] = {
        "max_steps": 1,
        "per_device_train_batch_size": 8,
        "max_completion_length": 10,
        "learning_rate": 1e-3,
        "max_grad_norm": 0.0,
        "shuffle_dataset": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "save_final_model": False,
        "rollout_log_steps": 0,
        "seed": 7,
    }
    return TrOPDConfig(output_dir=str(directory), method=method, **(defaults | settings))


@dataclass
class Run:
    """A finished run."""

    trainer: ScriptedTrainer
    steps: list[Step]

    @property
    def gradients(self) -> dict[str, Tensor]:
        return self.steps[0].gradients

    @property
    def logs(self) -> list[dict[str, float]]:
        """One record for each logged training step."""
        return [entry for entry in self.trainer.state.log_history if "loss" in entry]


def build(
    directory: Path | str,
    student: PreTrainedModel | str,
    teacher: PreTrainedModel | str,
    method: str = "tropd",
    *,
    script: Script | None = None,
    rows: Sequence[dict[str, Any]] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    trainer_options: dict[str, Any] | None = None,
    **settings: Any,
) -> ScriptedTrainer:
    """A trainer on tiny models; `settings` are the configuration's."""
    options = {"processing_class": tokenizer()} | (trainer_options or {})
    trainer = ScriptedTrainer(
        student,
        teacher,
        args=config(directory, method, **settings),
        train_dataset=same_dataset(rows),
        callbacks=list(callbacks),
        **options,
    )
    trainer.script = script
    return trainer


def run(
    directory: Path | str, student: PreTrainedModel, teacher: PreTrainedModel, method: str = "tropd", **options
) -> Run:
    """Train copies of `student` and `teacher`; the originals stay as they are."""
    recorder = Recorder()
    trainer = build(directory, clone(student), clone(teacher), method, callbacks=[recorder], **options)
    trainer.train()
    return Run(trainer, recorder.steps)


def largest_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).detach().abs().max()) for name in ours)


def largest(tensors: dict[str, Tensor]) -> float:
    return max(float(tensor.abs().max()) for tensor in tensors.values())


def plain_logps(model: PreTrainedModel, context: list[int], response: list[int]) -> Tensor:
    """log π(·|s) before each response token, [T, V] in float64: one unpadded row, Transformers' own logits."""
    logits = model(input_ids=torch.tensor([[*context, *response]])).logits[0]
    return logits[len(context) - 1 : -1].double().log_softmax(-1)


def plain_logp(model: PreTrainedModel, context: list[int], response: list[int]) -> Tensor:
    """log π of each response token, [T] in float64."""
    return plain_logps(model, context, response).gather(-1, torch.tensor(response)[:, None])[:, 0]


def gradients_of(model: PreTrainedModel, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}


def groups(rows: Sequence[str] = PROMPTS, num_prompts: int = 2, num_generations: int = 4) -> list[list[int]]:
    """The prompts' ids as a step of the default configuration sees them: every prompt `num_generations` times."""
    return [ids(prompt) for prompt in rows[:num_prompts] for _ in range(num_generations)]
