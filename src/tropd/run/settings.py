"""What a run needs besides `TrOPDConfig`: which models, which data, which adapter. No heavy import here."""

from dataclasses import dataclass, field
from typing import Literal

from ..teacher.names import Name
from ..teacher.per_teacher_settings import check_names, teachers_by_name


@dataclass(frozen=True)
class RunSettings:
    """Models, data and adapter of `tropd train` and `tropd check`; `--help` and docs/data.md explain each field."""

    student: str = field(default="", metadata={"help": "folder or Hub name of the model that learns"})
    teacher: str | list[str] | dict[str, str] = field(
        default="", metadata={"help": "model or server that scores; several: {name: model}, by a teacher column"}
    )
    data: str | list[str] = field(
        default="", metadata={"help": "prompts: file, list of files, saved data set, Hub name, or reasoning_gym:TASK"}
    )
    data_split: str = field(default="train", metadata={"help": "split of a data set that has several"})
    eval_data: str | list[str] | None = field(
        default=None, metadata={"help": "prompts for evaluation while training (see eval_strategy)"}
    )
    eval_split: str = field(default="test", metadata={"help": "split of an evaluation data set that has several"})
    columns: dict[str, str] = field(
        default_factory=dict, metadata={"help": "our column: the file's, such as {prompt: question}"}
    )
    chat: bool = field(default=False, metadata={"help": "wrap text prompts as a user message, for the chat template"})
    system_prompt: str | None = field(default=None, metadata={"help": "a system message before every conversation"})
    max_prompts: int | None = field(default=None, metadata={"help": "use only the first N rows"})
    overlong_prompts: Literal["refuse", "drop"] = field(
        default="refuse", metadata={"help": "prompts beyond the context: refuse or drop"}
    )
    overlap_with: list[str] = field(
        default_factory=list, metadata={"help": "evaluation files; their problems that are in `data` are reported"}
    )
    reward_funcs: list[str] = field(
        default_factory=list, metadata={"help": "names of trl.rewards, or dotted paths; monitored only by default"}
    )
    tools: list[str] = field(
        default_factory=list, metadata={"help": "functions that the student may call, by dotted paths"}
    )
    environment: str | dict[str, str] | None = field(
        default=None, metadata={"help": "class whose methods it may call, by a dotted path; several: {name: path}"}
    )
    preflight_prompts: int = field(default=8, metadata={"help": "prompts both models score before training; 0 none"})
    use_peft: bool = field(default=False, metadata={"help": "train a LoRA adapter instead of the whole student"})
    lora_r: int = field(default=16, metadata={"help": "rank of the adapter"})
    lora_alpha: int = field(default=32, metadata={"help": "scale of the adapter"})
    lora_dropout: float = field(default=0.0, metadata={"help": "dropout of the adapter"})
    lora_target_modules: str | list[str] = field(default="all-linear", metadata={"help": "layers that get the adapter"})

    def __post_init__(self) -> None:
        for name in ("student", "teacher", "data"):
            if not getattr(self, name):
                raise ValueError(f"{name} is not set; {_WANTED[name]}")
        check_names(self.teacher)
        teachers_by_name(self.teacher)
        if self.preflight_prompts < 0:
            raise ValueError(f"preflight_prompts is {self.preflight_prompts}; use a number of prompts, or 0 for none.")
        if self.max_prompts is not None and self.max_prompts < 1:
            raise ValueError(f"max_prompts is {self.max_prompts}; use at least 1, or remove it to use all rows.")
        if not self.use_peft:
            self._refuse_adapter_settings()

    @property
    def teachers(self) -> dict[Name, str]:
        """Name → folder or Hub name; one teacher has the name `None`."""
        return teachers_by_name(self.teacher)

    @property
    def teacher_names(self) -> list[str] | None:
        """The names that a row chooses from; `None` where there is one teacher without a name."""
        return list(self.teacher) if isinstance(self.teacher, dict) else None

    def _refuse_adapter_settings(self) -> None:
        for name in ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"):
            value, default = getattr(self, name), type(self).__dataclass_fields__[name].default
            if value != default:
                raise ValueError(
                    f"{name} is {value!r}, which has no effect without an adapter. Set use_peft: true, or remove it."
                )


_WANTED = {
    "student": "name the model that learns: `student: path/or/name` in the configuration, or --student path/or/name",
    "teacher": "name the model that scores: `teacher: path/or/name` in the configuration, or --teacher path/or/name",
    "data": "name the prompts: `data: prompts.jsonl` in the configuration, or --data prompts.jsonl",
}

TRL_NAMES = {
    "model_name_or_path": "student",
    "model": "student",
    "teacher_model_name_or_path": "teacher",
    "teacher_model": "teacher",
    "dataset_name": "data",
    "dataset_path": "data",
    "train_dataset": "data",
    "dataset_train_split": "data_split",
    "reward_model_name_or_path": "reward_funcs",
    "environment_factory": "environment",
    "max_prompt_length": "overlong_prompts",
    "lmbda": "method",
    "max_new_tokens": "max_completion_length",
    "max_length": "max_completion_length",
}
"""Names that users of TRL type, and what says it here."""
