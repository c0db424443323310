"""The runs we publish: they go on under their plans, and the tables of docs/results_in_detail.md are made of them."""

import dataclasses
import functools
import json
import re
from pathlib import Path
from statistics import fmean, median

import pytest

from tropd.comparison.plan_file import load_plan
from tropd.comparison.report.results import reported
from tropd.comparison.report.tables import accuracy_table
from tropd.comparison.report.token_analysis import phase_table
from tropd.comparison.run import report_only
from tropd.evaluation.statistics import estimate
from tropd.proving_ground.domains import DOMAINS

ROOT = Path(__file__).parents[2]
PUBLISHED = [
    "methods",
    "ablations",
    "pairs",
    "remains",
    "endings",
    "support",
    "support_ablations",
    "storeroom_unreliable",
    "storeroom_robust",
    "storeroom_rates",
]
PAIRS = ["from pruning", "three specialists"]
TABLES = {
    "### One domain": ("methods", "single-domain"),
    "### Three domains": ("methods", "multi-domain"),
    "### A pruned student": ("pairs", PAIRS[0]),
    "### Three specialists": ("pairs", PAIRS[1]),
}


def published(name):
    file = ROOT / f"docs/assets/proving-ground-{name}.json"
    return file, json.loads(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_runs_can_be_gone_on_with_under_their_plan(name, tmp_path):
    file, theirs = published(name)
    ours = report_only(load_plan(ROOT / f"recipes/proving_ground/{name}.yaml"), tmp_path / "out", [file])
    assert ours["cells"].keys() == theirs["cells"].keys()
    assert ours["settings"].keys() == theirs["settings"].keys()
    for setting, known in theirs["settings"].items():
        ours_now = ours["settings"][setting]
        shown = {label: ours_now["methods"][label] for label in known["methods"]}  # the plan may have grown since
        assert ours_now | {"methods": shown} == known, "the tables are those that were published"


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_published_names_no_machine(name):
    assert not re.search(r'"/|/tmp|/home|/root', published(name)[0].read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def beside(tmp_path_factory):
    """(published name, reference) → the settings of its results, with differences to that reference."""

    @functools.cache
    def settings(name, reference):
        plan = dataclasses.replace(load_plan(ROOT / f"recipes/proving_ground/{name}.yaml"), reference=reference)
        return report_only(plan, tmp_path_factory.mktemp(name) / "out", [published(name)[0]])["settings"]

    return settings


def table_under(heading, page="docs/results_in_detail.md", head=False, nth=0):
    """The rows of a table under a heading of the page, the first if none is asked for, without its head."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = text[text.index(f"\n{heading}\n") :].split("\n\n")
    table = [block for block in blocks if block.startswith("|")][nth].splitlines()
    return [
        [cell.strip(" `").replace("−", "-").replace("\u00a0", " ") for cell in line.strip("|").split("|")]
        for line in [*table[:head], *table[2:]]
    ]


SHORT_NAMES = {
    "one domain": "single-domain",
    "three domains": "multi-domain",
    "a pruned student": "from pruning",
    "three specialists": "three specialists",
    "three specialist teachers": "three specialists",
}


@pytest.mark.parametrize(
    ("page", "heading"), [("docs/results.md", "## Graded problems"), ("README.md", "## Measured results")]
)
def test_the_short_tables_have_the_published_accuracies(page, heading):
    settings = published("methods")[1]["settings"] | published("pairs")[1]["settings"]
    candidate = published("support")[1]["settings"]
    (_, untrained, *methods), *rows = table_under(heading, page, head=True)
    assert untrained == "student" and len(rows) == len(settings)
    for name_and_seeds, student, *cells in rows:
        short, seeds = re.fullmatch(r"(.+) \((\d)\)", name_and_seeds).groups()
        name = SHORT_NAMES[short]
        assert student == f"{100 * settings[name]['before']['student']['accuracy']:.1f}"
        found = settings[name]["methods"] | {"tropd_support": candidate[name]["methods"]["tropd_support"]}
        for heading_cell, cell in zip(methods, cells, strict=True):
            method = found.get(heading_cell.split("`")[0], {"seeds": []})
            assert cell == (_shown(method["metrics"]["accuracy"], 100, 1) if method["seeds"] else "–")
            assert len(method["seeds"]) in (0, int(seeds))


SPEEDS = ("speed/rollout", "speed/teacher", "speed/update", "step_time")
REAL = {"twenty": ("smollm2", "smollm2"), "twelve": ("smollm2-twelve", "smollm2-12")}


def real_results(layers):
    file, setting = REAL[layers]
    return json.loads((ROOT / f"docs/assets/{file}-results.json").read_text(encoding="utf-8"))["settings"][setting]


@pytest.mark.parametrize("layers", REAL)
def test_the_table_of_a_real_language_model_has_the_published_divergences(layers):
    found = real_results(layers)
    (_, _, *untrained, _), *rows = table_under(f"### {layers.capitalize()} layers")
    columns = [
        *(f"student_states/{name}" for name in ("reverse_kl", "forward_kl", "total_variation")),
        "teacher_states/forward_kl",
    ]
    assert untrained == [f"{found['before']['student'][name]:.3f}" for name in columns]
    assert {label for label, *_ in rows} == found["methods"].keys()
    for label, steps, *shown, _ in rows:
        method = found["methods"][label]
        assert steps == f"{method['steps']:.0f}" and method["seeds"] == [1, 2, 3]
        assert shown == [_shown(method["metrics"][name], 1, 3) for name in columns]


def test_a_wider_support_on_a_real_language_model_is_as_published():
    found = json.loads((ROOT / "docs/assets/smollm2-support-results.json").read_text(encoding="utf-8"))["settings"]
    metrics = found["smollm2"]["methods"]["k 64"]["metrics"]
    reverse, forward = (_shown(metrics[f"student_states/{name}"], 1, 3) for name in ("reverse_kl", "forward_kl"))
    page = (ROOT / "docs/results_in_detail.md").read_text(encoding="utf-8")
    assert f"ends at {reverse} in reverse KL and {forward} in forward KL" in page


def test_the_short_table_of_real_language_models_has_them_too():
    (_, *untrained), *rows = table_under("## A real language model", "docs/results.md")
    found = [real_results(layers) for layers in REAL]
    names = ("student_states/reverse_kl", "student_states/forward_kl")
    assert untrained == [f"{of['before']['student'][name]:.3f}" for of in found for name in names]
    assert {label for label, *_ in rows} == found[0]["methods"].keys()
    for label, *shown in rows:
        assert shown == [_shown(of["methods"][label]["metrics"][name], 1, 3) for of in found for name in names]


def test_cost_and_gradients_of_the_real_language_model_are_those_of_its_steps():
    steps = json.loads((ROOT / "docs/assets/smollm2-steps.json").read_text(encoding="utf-8"))["twenty"]
    rows = table_under("### Cost and forecast")
    assert {label for label, *_ in rows} == steps.keys()
    for label, *shown in rows:
        seeds = steps[label].values()
        medians = [fmean(median(of[name]) for of in seeds) for name in SPEEDS]
        norms = [fmean(summary(of["grad_norm"]) for of in seeds) for summary in (lambda all_: fmean(all_[:3]), max)]
        assert shown == [*(f"{value:.0f}" for value in medians), *(f"{value:.1f}" for value in norms)]


def test_the_parts_of_the_candidate_have_the_published_figures():
    parts, whole = (published(name)[1]["settings"] for name in ("support_ablations", "support"))
    for name, accuracy, _, _, distance in table_under("#### Its parts: k and the clip"):
        short, label = re.fullmatch(r"(one domain|a pruned student), (.+)", name).groups()
        setting = SHORT_NAMES[short]
        label = label.replace("τ", "tau").removeprefix("k 16, ")
        label, of_seeds = re.fullmatch(r"(.+?)(?:, seeds ([\d and]+))?", label).groups()
        if "(" in label:  # a row of the comparison before: here with the seeds of the others
            cells = published("support")[1]["cells"].values()
            scores = [c["scores"] for c in cells if (c["setting"], c["kind"]) == (setting, "report") and c["seed"] <= 3]
            metrics = {
                name: dataclasses.asdict(estimate([score[name] for score in scores]))
                for name in ("accuracy", "student_states/reverse_kl")
            }
            assert whole[setting]["methods"]["tropd_support"]["learning_rate"] == (
                3e-4 if short == "one domain" else 3e-5
            )
        else:
            metrics = parts[setting]["methods"][label]["metrics"]
            seeds = [int(seed) for seed in of_seeds.split(" and ")] if of_seeds else [1, 2, 3]
            assert parts[setting]["methods"][label]["seeds"] == seeds
        assert accuracy == _shown(metrics["accuracy"], 100, 1)
        assert distance == _shown(metrics["student_states/reverse_kl"], 1, 3)


def test_the_page_of_agents_has_the_published_rates():
    slow_and_fast, between = (
        published(name)[1]["cells"].values() for name in ("storeroom_rates", "storeroom_unreliable")
    )
    found = {(cell["label"], cell["learning_rate"]): cell["scores"] for cell in slow_and_fast}
    found |= {(f"{cell['label']} 3e-4", 3e-4): cell["scores"] for cell in between if cell["seed"] == 1}
    for label, *cells in table_under("### At other learning rates", "docs/agents.md"):
        scores = [found[f"{label} {rate}", float(rate)] for rate in ("1e-4", "3e-4", "1e-3")]
        assert cells == [f"{100 * of[name]:.1f}" for name in ("accuracy", "sampled") for of in scores]


def test_the_table_after_training_has_the_published_verdicts():
    cells = json.loads((ROOT / "docs/assets/smollm2-ifeval.json").read_text(encoding="utf-8"))["cells"]
    rows = table_under("### Accuracy and endings after training")
    assert [name.replace("`", "").removeprefix("student ") for name, *_ in rows] == list(cells)
    for (_, *shown), cell in zip(rows, cells.values(), strict=True):
        assert cell["problems"] == cells["before"]["problems"] and len(cell["problems"]) == 300
        right, ended, tokens = (fmean(cell[name]) for name in ("right", "ended", "tokens"))
        assert shown == [f"{100 * right:.1f}", f"{100 * ended:.1f}%", f"{tokens:.0f}"]


def test_the_table_of_the_base_student_has_the_published_scores():
    found = json.loads((ROOT / "docs/assets/smollm2-endings-results.json").read_text(encoding="utf-8"))
    (_, _, _, *untrained), *rows = table_under("### A base student")
    names = ("student_states/reverse_kl", "student_states/forward_kl")

    def shown(scores):
        ended, length = (fmean(score[name] for score in scores) for name in ("ended", "length"))
        divergences = [dataclasses.asdict(estimate([score[name] for score in scores])) for name in names]
        written = [_shown(of, 1, 3) if of["n"] > 1 else f"{of['mean']:.3f}" for of in divergences]
        return [f"{100 * ended:.1f}%", f"{length:.0f}", *written]

    assert untrained == shown([found["settings"]["smollm2-base"]["before"]["student"]])
    seen = 0
    for method, ending, steps, *cells in rows:
        label = method if ending == "one action" else f"{method} as given"
        mine = [cell for cell in found["cells"].values() if cell["label"] == label]
        stopped = ", stopped" if all(cell["failure"] for cell in mine) else ""
        assert steps == f"{fmean(cell['steps'] for cell in mine):.0f}{stopped}"
        assert cells == shown([cell["scores"] for cell in mine])
        seen += len(mine)
    assert seen == len(found["cells"])


EPISODES = {
    "### A teacher that is lost after errors": "storeroom_unreliable",
    "### A teacher that knows its way back": "storeroom_robust",
}


@pytest.mark.parametrize("heading", EPISODES)
def test_the_page_of_agents_has_the_published_episodes(heading):
    found = published(EPISODES[heading])[1]["settings"]["storeroom"]
    (_, *untrained), *rows, _ = table_under(heading, "docs/agents.md")
    columns = {"accuracy": (100, 1), "sampled": (100, 1), "calls": (1, 2), "failures": (1, 2)}
    turns = ("trust_1", "trust_4", "trust_8")
    scores = found["before"]["student"]
    assert [cell for cell in untrained if cell] == [
        *(f"{factor * scores[name]:.{digits}f}" for name, (factor, digits) in columns.items()),
        *(f"{scores[name]:.3f}" for name in (*turns, "student_states/reverse_kl")),
    ]
    assert {row[0] for row in rows} == found["methods"].keys()
    for label, greedy, to_opd, sampled, sampled_to_opd, calls, failures, *trust, divergence in rows:
        method = found["methods"][label]
        metrics, differences = method["metrics"], method["differences"]
        assert len(method["seeds"]) == 3
        shown = zip((greedy, sampled, calls, failures), columns.items(), strict=True)
        assert all(cell == _shown(metrics[name], *how) for cell, (name, how) in shown)
        assert (to_opd, sampled_to_opd) == (_difference(method), _difference(method, "sampled")), differences
        assert trust == [f"{metrics[name]['mean']:.3f}" for name in turns]
        assert divergence == _shown(metrics["student_states/reverse_kl"], 1, 3)


@pytest.mark.parametrize("heading", EPISODES)
def test_the_page_of_agents_has_the_published_course_of_training(heading):
    cells = published(EPISODES[heading])[1]["cells"].values()
    names = ("agent/trust_first_turn", "agent/trust_last_turn", "reward")
    for label, *shown in table_under(heading, "docs/agents.md", nth=1):
        courses = [cell["course"] for cell in cells if cell["label"] == label]
        assert len(courses) == 3
        found = [
            fmean(fmean(value for value in course[name][part] if value is not None) for course in courses)
            for name in names
            for part in (slice(0, 10), slice(-10, None))
        ]
        assert shown == [f"{value:.2f}" for value in found]


@pytest.mark.parametrize("heading", EPISODES)
def test_the_page_of_agents_has_the_published_success_by_level(heading):
    report = published(EPISODES[heading])[1]
    found, cells = report["settings"]["storeroom"], report["cells"].values()
    levels = [f"level {number}" for number in range(1, 5)]
    (_, *untrained), *rows = table_under(heading, "docs/agents.md", nth=2)
    (at_first,) = {tuple(cell["points"][0]["scores"][f"accuracy/{level}"] for level in levels) for cell in cells}
    sampled = [found["before"]["student"][f"sampled/{level}"] for level in levels]
    assert untrained == [f"{100 * value:.0f}" for value in [*at_first, *sampled]]
    assert [label for label, *_ in rows] == [label for label, *_ in table_under(heading, "docs/agents.md", nth=1)]
    for label, *shown in rows:
        points = [[point["scores"] for point in cell["points"]] for cell in cells if cell["label"] == label]
        assert len(points) == 3
        greedy = [
            " → ".join(f"{100 * fmean(one[part][f'accuracy/{level}'] for one in points):.0f}" for part in (1, 2))
            for level in levels
        ]
        metrics = found["methods"][label]["metrics"]
        assert shown == [*greedy, *(_shown(metrics[f"sampled/{level}"], 100, 0) for level in levels)]


@pytest.mark.parametrize("heading", EPISODES)
def test_the_page_of_agents_has_the_published_trust_in_every_turn(heading):
    found = published(EPISODES[heading])[1]["settings"]["storeroom"]
    (_, *untrained), *rows = table_under(heading, "docs/agents.md", nth=3)
    names = [f"trust_{turn}" for turn in range(1, 10)]
    assert untrained == [f"{found['before']['student'][name]:.2f}" for name in names]
    assert {label for label, *_ in rows} == found["methods"].keys()
    for label, *shown in rows:
        metrics = found["methods"][label]["metrics"]
        assert shown == [f"{metrics[name]['mean']:.2f}" if name in metrics else "–" for name in names]


def test_the_page_of_agents_has_what_was_measured_after_errors():
    found = json.loads((ROOT / "docs/assets/storeroom-after-errors.json").read_text(encoding="utf-8"))
    for label, *shown in table_under("### After an error", "docs/agents.md"):
        mine = [
            {name: value for name, value in row.items() if name != "seed"} for row in found if row["label"] == label
        ]
        estimates = {name: estimate([row[name] for row in mine]) for name in mine[0] if name != "label"}
        for (name, value), cell in zip(estimates.items(), shown, strict=True):
            digits = 1 if "error" in name else 3
            spread = f" ± {value.standard_error:.{digits}f}" if value.n > 1 else ""
            assert cell == f"{value.mean:.{digits}f}{spread}", name


@pytest.mark.parametrize("heading", TABLES)
def test_the_page_of_results_has_the_published_scores(heading, beside):
    name, setting = TABLES[heading]
    ours = beside(name, "opd")[setting]
    accuracies = accuracy_table(ours, "opd")[1]
    shown = table_under(heading)
    assert [row[0] for row in shown] == [row[0] for row in accuracies]
    first, last = 4, 2 + len(accuracies[0])  # after method, rate, seeds and steps; before the difference
    for line, row in zip(shown, accuracies, strict=True):
        assert line[first:last] == row[1:-1]
    for label, rate, seeds, _, *_, to_opd, to_tropd, reverse, forward in shown[2:]:
        method = ours["methods"][label]
        assert _rate(rate) == (method["learning_rate"], method["at_edge"])
        assert int(seeds) == len(method["seeds"]) == len(ours["methods"]["opd"]["seeds"])
        assert to_opd == _difference(method)
        assert to_tropd == _difference(beside(name, "tropd")[setting]["methods"][label])
        assert reverse == _shown(method["metrics"]["student_states/reverse_kl"], 1, 3)
        assert forward == _shown(method["metrics"]["teacher_states/forward_kl"], 1, 3)


def test_the_page_of_results_has_every_part_as_published(beside):
    shown = [row[1:] for row in table_under("### Part by part")]
    methods, to_tropd = (beside("ablations", reference)["single-domain"]["methods"] for reference in ("opd", "tropd"))
    assert {name for name, *_ in shown} == set(methods) and len(shown) == len(methods)
    for name, rate, seeds, steps, validation, test, *differences, distance in shown:
        method = methods[name]
        assert _rate(rate) == (method["learning_rate"], method["at_edge"])
        assert (int(seeds), int(steps)) == (len(method["seeds"]), round(method["steps"]))
        assert validation == format(100 * method["grid"][format(method["learning_rate"], "g")], ".1f")
        assert test == _shown(method["metrics"]["accuracy"], 100, 1)
        assert differences == [_difference(method), _difference(to_tropd[name])]
        assert distance == _shown(method["metrics"]["student_states/reverse_kl"], 1, 3)


def test_the_page_of_results_is_beside_the_paper_with_what_was_published(beside):
    columns = [("methods", "single-domain"), ("methods", "multi-domain"), *(("pairs", name) for name in PAIRS)]
    for _, label, _, *shown in table_under("### Comparison with the paper"):
        for cell, (name, setting) in zip(shown, columns, strict=True):
            method = beside(name, "opd")[setting]["methods"].get(label)
            if method is None and setting == "single-domain":  # three seeds
                method = beside("ablations", "opd")[setting]["methods"][label]
            assert cell == ("" if method is None else _difference(method) + "†" * method["at_edge"])


@pytest.mark.parametrize("setting", ["one domain", "three domains"])
def test_the_page_of_results_has_what_became_of_endings_that_differ(setting, beside):
    methods = beside("endings", "opd")[setting]["methods"]
    for label, rate, alike, *shown in table_under(f"#### Endings, {setting}"):
        rows = [methods[name] for name in (label, f"{label} as given", f"{label} two ids")]
        assert float(rate) == rows[0]["learning_rate"]
        right, ended = (
            [_shown(row["metrics"][name], 100, digits) for row in rows]
            for name, digits in (("accuracy", 1), ("ended", 0))
        )
        one_action, difference, as_given, its_end, two_ids, their_end = shown
        assert [one_action, as_given, two_ids] == right
        assert [re.sub(r" \(\d stopped\)", "", end) for end in (its_end, their_end)] == ended[1:]
        stopped = [
            int(found[1]) if (found := re.search(r"\((\d) stopped\)", end)) else 0 for end in (its_end, their_end)
        ]
        assert stopped == [row["failures"] for row in rows[1:]]
        assert difference == (_difference(rows[0]) if label != "opd" else "")
        published_runs = beside("methods", "opd")[
            {"one domain": "single-domain", "three domains": "multi-domain"}[setting]
        ]
        assert (alike == "") is (label not in published_runs["methods"])


def test_the_page_of_results_has_the_published_pulls():
    pulls = published("pull")[1]
    one = pulls["student from specialist-mathematics, mathematics"]
    three = [pulls[f"student from generalist, {domain}"] for domain in DOMAINS]
    shown = table_under("#### At the start: how hard a method pulls")
    assert [label for label, *_ in shown] == sorted(one, key=lambda label: -one[label]["pull"])
    for label, length, signal, pull, _, of_three, _ in shown:
        found = one[label]
        assert [length, signal] == [f"{found['length']:.2f}", f"{100 * found['signal']:.0f}%"]
        assert [pull, of_three] == [f"{found['pull']:.3f}", f"{fmean(each[label]['pull'] for each in three):.3f}"]


def test_the_page_of_results_says_what_is_left_as_published():
    rows = published("left")[1]
    shown = table_under("#### At the end: what is left")
    assert sorted(label for label, *_ in shown) == sorted({row["label"] for row in rows})
    names = ("excluded", "excluded/first", "excluded/middle", "excluded/last", "excluded/numbers")
    columns = [("shared", name, 1) for name in names]
    columns += [("own", "excluded", 1), ("own", "reverse_kl", 2), ("own", "reverse_kl/far", 2)]
    for label, _, *cells in shown:
        mine = [row for row in rows if row["label"] == label]
        for cell, (states, name, digits) in zip(cells, columns, strict=True):
            values = [row[states][name] for row in mine]
            found = estimate(values)
            spread = f" ± {found.standard_error:.{digits}f}" if found.n > 1 else ""
            assert cell == f"{found.mean:.{digits}f}{spread}"


def _rate(shown):
    return float(shown.removesuffix("†")), shown.endswith("†")


def _shown(found, factor, digits):
    return f"{factor * found['mean']:.{digits}f} ± {factor * found['standard_error']:.{digits}f}"


def _difference(method, score="accuracy"):
    """In points, with its interval; nothing for the reference."""
    found = method["differences"].get(score)
    if found is None:
        return ""
    low, high = 100 * found["low"], 100 * found["high"]
    return f"{100 * found['mean']:+.1f} [{low:+.1f}, {high:+.1f}]" + " *" * found["excludes_zero"]


def test_the_page_of_results_says_what_was_learned_from_as_published():
    page = (ROOT / "docs/results_in_detail.md").read_text(encoding="utf-8")
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
