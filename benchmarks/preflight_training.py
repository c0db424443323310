"""Does the trust region pay at this distance? OPD, FKL Outlier and TrOPD from students at several trust fractions.

    python benchmarks/preflight_training.py --stories DIR --out DIR

DIR of `--stories` is the folder of the pretrained story model; each student is that model with noise on its weights or
without a layer. Every method takes its best learning rate by validation. About 15 minutes on one CPU core, resumable;
DIR of `--out` has the tables. What it showed: docs/preflight.md.
"""

import argparse
import sys
from pathlib import Path

from preflight_pairs import STORY_STUDENTS, write_story_student

from tropd.comparison.plan import Plan
from tropd.comparison.plan_file import load_plan, read_plan
from tropd.comparison.run import compare

PAIRS = ("noise 0.1", "without layer 2", "noise 0.05")
METHODS = ("opd", "fkl_outlier", "tropd")
RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "stories260k.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stories", required=True, help="folder of the story model")
    parser.add_argument("--out", required=True, type=Path, help="folder of the students and the comparison")
    parser.add_argument("--student-tokens", type=int, default=65_536, help="budget of a run (default 65536)")
    options = parser.parse_args()
    compare(
        plan(options.stories, options.out, options.student_tokens),
        options.out,
        jobs=1,
        report=lambda progress: print(f"{progress.done}/{progress.total}", *progress.running, file=sys.stderr),
    )
    print((options.out / "tables.md").read_text(encoding="utf-8"))


def plan(stories: str, out: Path, student_tokens: int) -> Plan:
    """The recipe's plan with these students, methods and budget."""
    students = {name: write_story_student(stories, STORY_STUDENTS[name], _folder(out, name)) for name in PAIRS}
    recipe = load_plan(RECIPE, stories)
    return read_plan(
        recipe.as_dict()
        | {
            "settings": {
                name: {"stories": recipe.settings["stories"].stories, "student": str(folder), "teacher": stories}
                for name, folder in students.items()
            },
            "methods": {name: {} for name in METHODS},
            "student_tokens": student_tokens,
            "learning_rates": [3e-4, 1e-3],
            "seeds": [1, 2],
        }
    )


def _folder(out: Path, name: str) -> Path:
    return out / "students" / name.replace(" ", "-")


if __name__ == "__main__":
    main()
