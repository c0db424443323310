"""A comparison as data: methods, settings and budget. No torch here."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..objective.methods import SETTINGS, Method, describe, get_method
from ..proving_ground.family import MODELS
from ..proving_ground.storeroom import MODELS as OF_STOREROOM
from ..shipped import locate
from ..training.guards.field_types import check_types

SPLITS = ("train", "validation", "test")
STATES = ("student_states", "teacher_states")
DIVERGENCES = ("reverse_kl", "forward_kl", "total_variation")
ENVIRONMENTS = ("storeroom",)
OF_EPISODES = ("sampled", "calls", "failures")
"""Scores of an environment's episodes at temperature 1, by level."""
TURNS = 9
"""Trust is measured turn by turn, up to this one."""
SHIPPED = (*MODELS, *(f"storeroom-{name}" for name in OF_STOREROOM))
LEVELS = {f"level {number}": number for number in (1, 2, 3, 4)}
"""Of an environment's problems, by what scores call them."""


@dataclass(frozen=True)
class Setting:
    """One pair (or several teachers) and the prompts it is compared on. Exactly one of the four sources is given."""

    # a shipped model's name, a folder or Hub name, or `{keep_layers: [0, 1, 4]}`: the teacher's
    student: str | dict[str, list[int]]
    teacher: str = ""  # a name or a folder; empty until `--teacher` names it
    teachers: dict[str, str] = field(default_factory=dict)  # instead of one teacher, a teacher for each domain
    # a token with which copies of the teachers end (`<unk>`), so that student and teacher end with different ids; empty
    # leaves the teachers alone
    teacher_ending: str = ""
    domains: list[str] = field(default_factory=list)  # graded problems of the proving ground, by name
    stories: list[int] = field(default_factory=list)  # the teacher's own texts; shortest and longest prompt, in tokens
    data: dict[str, str] = field(default_factory=dict)  # files of prompts, by split
    environment: str = ""  # where the student acts, over turns and with tools: `storeroom`, level by level

    def __post_init__(self) -> None:
        check_types(self)

    @property
    def parts(self) -> list[str]:
        """What scores are given for one by one: the domains, the levels, or the one source there is."""
        if self.environment:
            return list(LEVELS)
        return self.domains or (["stories"] if self.stories else ["data"])

    @property
    def is_graded(self) -> bool:
        return bool(self.domains or self.environment)

    def teacher_of(self, part: str) -> str:
        return self.teachers.get(part, self.teacher)


@dataclass(frozen=True)
class Plan:
    """Read from YAML by `plan_file.load_plan`."""

    settings: dict[str, Setting]  # by name
    # label → method name (`package.module:NAME` for one of your own), changed parts, and fields of `TrOPDConfig` of
    # this method alone; without a name the label is it. A `learning_rate` there, one number or one for each setting, is
    # not chosen from the grid
    methods: dict[str, dict[str, Any]]
    seeds: list[int]  # of the reported runs, measured on test prompts
    student_tokens: int  # tokens that the student writes in a run: the budget that all methods share
    prompts: dict[str, int]  # how many for `train`, `validation` and `test`, in each domain or level
    max_length: int  # L_max, tokens of prefix and continuation together
    learning_rates: list[float]  # the grid every method chooses from; one rate needs no grid
    title: str = "Methods side by side"  # heading of the report
    grid_seed: int = 0  # seed of the runs that choose the learning rate, on validation prompts
    grid_tokens: int | None = None  # their budget; `None` is `student_tokens`
    prompt_seed: int = 1  # seed of the prompts and of the teacher's responses
    prompts_per_step: int = 16  # prompts of one optimiser step
    rollouts_per_prompt: int = 4  # sequences of each
    # what chooses the learning rate on validation prompts: `accuracy`, or `<states>/<divergence>`
    select_on: str = "student_states/reverse_kl"
    divergence_prompts: int = 64  # prompts of each domain on which divergences are exact; 0 measures none
    points: int = 4  # how many times in a run the accuracy on a few validation prompts is measured; 0 means never
    point_prompts: int = 32  # how many of each domain
    reference: str = "opd"  # the method that the others are compared with
    trainer: dict[str, Any] = field(default_factory=dict)  # further fields of `TrOPDConfig`

    def __post_init__(self) -> None:
        check_types(self)

    @property
    def rows_per_step(self) -> int:
        return self.prompts_per_step * self.rollouts_per_prompt

    def method_of(self, label: str) -> Method:
        changes = self.methods[label]
        parts = {name: value for name, value in changes.items() if name in SETTINGS}
        return get_method(changes.get("method", label), **parts)

    def own_methods(self) -> dict[str, dict[str, Any]]:
        """The values of methods that are named by `package.module:NAME`, by label: the plan has their names alone."""
        named = [label for label, parts in self.methods.items() if ":" in str(parts.get("method", ""))]
        return {label: describe(self.method_of(label)) for label in named}

    def fixed_rate(self, setting: str, label: str) -> float | None:
        """The learning rate that the plan gives a method; `None` where the grid chooses it."""
        given = self.methods[label].get("learning_rate")
        return given.get(setting) if isinstance(given, dict) else given

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def model_folder(name: str) -> str:
    """The folder of a model of the proving ground, unless a file here has that name; else the name."""
    return locate(f"shipped:{name}") if name in SHIPPED and not Path(name).exists() else name
