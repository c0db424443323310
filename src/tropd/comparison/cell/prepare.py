"""Prepares a setting once for all of its cells: student, prompts with responses, and scores before training."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...atomic_files import write_whole
from ...models.files import read_model_files
from ...teacher.endings import declared_endings, pair_endings
from ..other_ending import write_with_ending
from ..plan import Plan, Setting, model_folder
from .episode_ruler import EpisodeRuler
from .scores import Ruler
from .texts import Splits, Text, load_model, load_teachers, make_texts, read_texts, teacher_folder, write_texts

PROMPTS, BEFORE, STUDENT = "prompts.json", "before.json", "student"


def prepare(plan: Plan, name: str, folder: Path, tell: Callable[[str], None] = lambda words: None) -> None:
    """Write `folder`: the student where it is made here, prompts.json, and before.json, which is written last.

    `tell` receives progress messages.
    """
    setting = plan.settings[name]
    shutil.rmtree(folder, ignore_errors=True)  # of a preparation that was cut short
    folder.mkdir(parents=True)
    if isinstance(setting.student, dict):
        from ...models.pruning import write_student

        write_student(model_folder(setting.teacher), setting.student["keep_layers"], folder / STUDENT)
    if setting.teacher_ending:
        for teacher in dict.fromkeys(setting.teacher_of(part) for part in setting.parts):
            write_with_ending(
                model_folder(teacher), setting.teacher_ending, Path(teacher_folder(setting, teacher, folder))
            )
    tell("writing teacher responses")
    texts = make_texts(setting, plan, folder)
    write_texts(folder / PROMPTS, texts)
    tell("measuring student and teacher on test prompts")
    write_whole(folder / BEFORE, json.dumps(_before(plan, setting, folder, texts)) + "\n")


def _before(plan: Plan, setting: Setting, folder: Path, texts: Splits) -> dict[str, Any]:
    """The student and its teachers on the test prompts, and the student where its accuracy over training starts."""
    ruler = make_ruler(plan, setting, folder)
    student = load_model(student_folder(setting, folder)).eval()
    found: dict[str, Any] = {}
    for name, models in (("teacher", ruler.teachers), ("student", dict.fromkeys(setting.parts, student))):
        by_part = [
            ruler.measure(models[part].eval(), [text for text in texts["test"] if text.part == part])
            for part in setting.parts
        ]
        found[name] = _together([measured.scores for measured in by_part])
    found["point"] = ruler.accuracy(student, point_texts(plan, setting, texts["validation"]))
    return found


def _together(by_part: list[dict[str, float]]) -> dict[str, float]:
    """Scores of the parts as one: what stands in each of them is averaged."""
    scores = {name: value for scores in by_part for name, value in scores.items()}
    shared = set.intersection(*(set(scores) for scores in by_part))
    return scores | {name: sum(one[name] for one in by_part) / len(by_part) for name in shared}


def make_ruler(plan: Plan, setting: Setting, folder: Path) -> Ruler:
    """What a setting's models are measured with."""
    files = {
        part: read_model_files(teacher_folder(setting, setting.teacher_of(part), folder)) for part in setting.parts
    }
    student = read_model_files(student_folder(setting, folder))
    endings = pair_endings(
        declared_endings(student.generation_config, student.tokenizer),
        {part: declared_endings(teacher.generation_config, teacher.tokenizer) for part, teacher in files.items()},
        ending="one_action",
        ending_ids=None,
        vocab_size=min(model.head_rows for model in (student, *files.values())),
    )
    kind = EpisodeRuler if setting.environment else Ruler
    return kind(load_teachers(setting, folder), files[setting.parts[0]].tokenizer, endings, plan)


def student_folder(setting: Setting, folder: Path) -> str:
    """Where the student is that every run of the setting starts from."""
    return str(folder / STUDENT) if isinstance(setting.student, dict) else model_folder(setting.student)


def point_texts(plan: Plan, setting: Setting, validation: list[Text]) -> list[Text]:
    """The few validation prompts on which accuracy is followed over a run; parts take turns in the list."""
    return validation[: plan.point_prompts * len(setting.parts)] if setting.is_graded else []


def read_setting(folder: Path) -> tuple[Splits, dict[str, Any]]:
    """Prompts, and scores before training, of a setting that is ready."""
    return read_texts(folder / PROMPTS), json.loads((folder / BEFORE).read_text(encoding="utf-8"))
