"""A setting made ready once, for all of its cells: student, prompts with responses, and the models before training."""

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from ..training.run_directory import write_whole
from .measure import Ruler
from .names import model_folder
from .plan import Plan, Setting
from .sources import Splits, Text, eos_ids_of, load_model, load_teachers, make_texts, read_texts, write_texts

PROMPTS, BEFORE, STUDENT = "prompts.json", "before.json", "student"


def prepare(plan: Plan, name: str, folder: Path) -> None:
    """Write `folder`: the student where it is made here, prompts.json, and before.json, which is written last."""
    setting = plan.settings[name]
    shutil.rmtree(folder, ignore_errors=True)  # of a preparation that was cut short
    folder.mkdir(parents=True)
    if isinstance(setting.student, dict):
        from ..compression import write_student

        write_student(model_folder(setting.teacher), setting.student["keep_layers"], folder / STUDENT)
    texts = make_texts(setting, plan)
    write_texts(folder / PROMPTS, texts)
    write_whole(folder / BEFORE, json.dumps(_before(plan, setting, folder, texts)) + "\n")


def _before(plan: Plan, setting: Setting, folder: Path, texts: Splits) -> dict[str, Any]:
    """The student and its teachers on the test prompts, and the student where its accuracy over training starts."""
    ruler = make_ruler(plan, setting)
    student = load_model(student_folder(setting, folder)).eval()
    found: dict[str, Any] = {}
    for name, models in (("teacher", ruler.teachers), ("student", dict.fromkeys(setting.parts, student))):
        by_part = [
            ruler.measure(models[part], [text for text in texts["test"] if text.part == part]) for part in setting.parts
        ]
        found[name] = _together([measured.scores for measured in by_part])
    found["point"] = ruler.accuracy(student, point_texts(plan, setting, texts["validation"]))
    return found


def _together(by_part: list[dict[str, float]]) -> dict[str, float]:
    """Scores of the parts as one: what stands in each of them is averaged."""
    scores = {name: value for scores in by_part for name, value in scores.items()}
    shared = set.intersection(*(set(scores) for scores in by_part))
    return scores | {name: sum(one[name] for one in by_part) / len(by_part) for name in shared}


def make_ruler(plan: Plan, setting: Setting) -> Ruler:
    """What a setting's models are measured with."""
    first = setting.teacher_of(setting.parts[0])
    tokenizer = AutoTokenizer.from_pretrained(model_folder(first))
    return Ruler(load_teachers(setting), tokenizer, eos_ids_of(first), plan)


def student_folder(setting: Setting, folder: Path) -> str:
    """Where the student is that every run of the setting starts from."""
    return str(folder / STUDENT) if isinstance(setting.student, dict) else model_folder(setting.student)


def point_texts(plan: Plan, setting: Setting, validation: list[Text]) -> list[Text]:
    """The few validation prompts on which accuracy is followed over a run; parts take turns in the list."""
    return validation[: plan.point_prompts * len(setting.parts)] if setting.domains else []


def read_setting(folder: Path) -> tuple[Splits, dict[str, Any]]:
    """Prompts, and scores before training, of a setting that is ready."""
    return read_texts(folder / PROMPTS), json.loads((folder / BEFORE).read_text(encoding="utf-8"))
