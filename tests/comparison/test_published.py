"""The runs we publish: they go on under their plans, and the tables of docs/results.md are made of them."""

import json
import re
from pathlib import Path

import pytest

from tropd.comparison.anatomy import phase_table
from tropd.comparison.reading import load_plan
from tropd.comparison.results import reported
from tropd.comparison.run import report_only
from tropd.comparison.tables import accuracy_table

ROOT = Path(__file__).parents[2]
PUBLISHED = ["methods", "ablations", "pairs"]
TABLES = {"### One domain": ("methods", "single-domain"), "### Three domains": ("methods", "multi-domain")}


def published(name):
    file = ROOT / f"docs/assets/proving-ground-{name}.json"
    return file, json.loads(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_runs_can_be_gone_on_with_under_their_plan(name, tmp_path):
    file, theirs = published(name)
    ours = report_only(load_plan(ROOT / f"recipes/proving_ground/{name}.yaml"), tmp_path / "out", [file])
    assert ours["cells"].keys() == theirs["cells"].keys()
    for name, setting in theirs["settings"].items():  # the plan may have grown since
        known = ours["settings"][name]["methods"].keys() & setting["methods"].keys()
        shown = ours["settings"][name] | {
            "methods": {label: ours["settings"][name]["methods"][label] for label in known}
        }
        assert known == setting["methods"].keys() and shown == setting, "the tables are those that were published"


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_published_names_no_machine(name):
    assert not re.search(r'"/|/tmp|/home|/root', published(name)[0].read_text(encoding="utf-8"))


@pytest.mark.parametrize("heading", TABLES)
def test_the_page_of_results_has_the_published_accuracies(heading):
    name, setting = TABLES[heading]
    results = published(name)[1]
    _, rows = accuracy_table(results["settings"][setting], results["plan"]["reference"])
    page = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    table = page[page.index(heading) :].split("\n\n")[1].splitlines()[2:]
    shown = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in table]
    first = 4  # after method, rate, seeds and steps
    assert [row[0] for row in shown] == [row[0] for row in rows]
    for line, row in zip(shown, rows, strict=True):
        values = [cell.replace("−", "-") for cell in line[first : first + len(row) - 1]]
        assert values == [cell if cell != "–" else "" for cell in row[1:]]


def test_the_page_of_results_has_every_part_as_published():
    page = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    table = page[page.index("### Part by part") :].split("\n\n")[2].splitlines()[2:]
    shown = [[cell.strip(" `") for cell in line.strip("|").split("|")][1:] for line in table]
    methods = published("ablations")[1]["settings"]["single-domain"]["methods"]
    assert {name for name, *_ in shown} == set(methods) and len(shown) == len(methods)
    for name, rate, seeds, steps, validation, test, *_, distance in shown:
        method = methods[name]
        assert float(rate.removesuffix("†")) == method["learning_rate"] and rate.endswith("†") == method["at_edge"]
        assert (int(seeds), int(steps)) == (len(method["seeds"]), round(method["steps"]))
        assert validation == format(100 * method["grid"][format(method["learning_rate"], "g")], ".1f")
        assert test == _shown(method["metrics"]["accuracy"], 100, 1)
        assert distance == _shown(method["metrics"]["student_states/reverse_kl"], 1, 3)


def _shown(found, factor, digits):
    return f"{factor * found['mean']:.{digits}f} ± {factor * found['standard_error']:.{digits}f}"


def test_the_page_of_results_says_what_was_learned_from_as_published():
    page = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    table = page[page.index("| | third |") :].split("\n\n")[0].splitlines()[2:]
    published_rows = {
        (label, third): [tokens, f"{outliers}%", *rest]
        for label, third, tokens, _, outliers, *rest in phase_table(reported(published("methods")[1], "multi-domain"))[
            1
        ]
    }
    label = ""
    for line in table:
        name, third, *values = [cell.strip().replace("−", "-") for cell in line.strip("|").split("|")]
        label = name.split("`")[1] if name else label
        expected = published_rows[label, third]
        assert values == [
            value if shown or value != "0.0000" else "" for value, shown in zip(expected, values, strict=True)
        ]
