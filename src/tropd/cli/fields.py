"""The fields of a configuration, as `--help` shows them; TRL is not imported for it."""

import argparse
from dataclasses import MISSING, fields
from typing import Any

from ..run.settings import RunSettings
from ..training.method_settings import MethodSettings

TRAINER_FIELDS = """\
trainer (every field of TRL's GRPOConfig and Transformers' TrainingArguments; the ones most often set):
  output_dir                    folder of the run; must be empty, or be resumed
  max_steps, num_train_epochs   length of the run
  learning_rate                 5e-06, constant, as in the paper
  num_generations               4 rollouts per prompt
  per_device_train_batch_size   8 sequences (not prompts) at once
  gradient_accumulation_steps   1; prompts per step = batch size x accumulation x processes / num_generations
  max_completion_length         512 tokens of prefix and response together
  temperature                   1.0
  bf16, use_cpu                 set for you if there is no accelerator
  model_init_kwargs             such as {dtype: bfloat16}, of an adapter's base; float32 by default, as in TRL
  logging_steps, save_steps     10, 500
  resume_from_checkpoint        latest, or the folder of a checkpoint
  use_vllm, vllm_mode           rollouts by vLLM (TRL's own)
  report_to                     wandb, tensorboard, …
  seed                          42
"""


def add_configuration_arguments(parser: argparse.ArgumentParser) -> None:
    """`--config FILE` and the fields as overrides."""
    parser.add_argument(
        "--config", metavar="FILE", help="YAML file of fields; `extends: other.yaml` starts from another"
    )
    parser.set_defaults(takes_fields=True)


def fields_help() -> str:
    """All fields, a line each."""
    parts = [
        "fields, in the file or as `--field value` (lists: `--field a b`; a mapping's key: `--columns.prompt q`):\n",
        "models, data, adapter:\n" + _lines(RunSettings),
        "method and teacher (None: the method's own value, see `tropd methods NAME`):\n" + _lines(MethodSettings),
        TRAINER_FIELDS,
    ]
    return "\n".join(parts)


def _lines(settings: Any) -> str:
    lines = ""
    for field in fields(settings):
        default = str(field.default).lower() if isinstance(field.default, bool) else field.default
        shown = "" if default in (MISSING, "", None) else f"[{default}] "
        lines += f"  {field.name + ' ':<30}{shown}{field.metadata['help']}\n"
    return lines
