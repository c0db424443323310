"""Plans: what is read, what is refused, which cells they ask for."""

from pathlib import Path

import pytest

from tropd.comparison.cells import Cell, choose_learning_rate, grid_cells, next_cells, pairs
from tropd.comparison.plan_file import check_trainer_fields, load_plan, read_plan

RATES = [1.0e-3, 3.0e-3]
RECIPES = Path(__file__).parents[2] / "recipes"


def test_the_recipe_of_the_first_comparison_is_carried_over():
    plan = load_plan(RECIPES / "stories260k.yaml", teacher="STORIES")
    assert list(plan.methods) == ["opd", "mask_outlier", "reopold", "eopd", "fkl_outlier", "tropd", "fkl", "gkd"]
    assert plan.method_of("gkd").jsd_beta == 1.0
    assert plan.settings["stories"].teacher == "STORIES" and plan.settings["stories"].parts == ["stories"]
    assert len(grid_cells(plan, "stories", "opd")) == 4


def test_a_plan_survives_being_written_down(plan_data):
    plan = read_plan(plan_data)
    assert read_plan(plan.as_dict()) == plan


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metods": {}}, r"the plan has 'metods', which is unknown \(did you mean 'methods'\?\)"),
        ({"seeds": ...}, "the plan lacks seeds"),
        ({"seeds": [1, 1]}, "a list of different numbers"),
        ({"methods": {"topd": None}}, "methods.topd: .*did you mean 'tropd'"),
        ({"methods": {"opd": {"fkl_top_k": 3}}}, "no effect under method 'opd'"),
        ({"methods": {"a/b": {"method": "opd"}}}, "also names a folder"),
        ({"reference": "fkl"}, "not one of the methods"),
        ({"learning_rates": ["1e-3"]}, r"learning_rates\[0\] is '1e-3'; it takes a number"),
        ({"prompts": {"train": 8}}, "a number for each of train, validation, test"),
        ({"trainer": {"max_steps": 3}}, "a run ends when `student_tokens` are written"),
        ({"trainer": {"lr_scheduler_type": "cosine"}}, "its last step is unknown"),
        ({"trainer": {"learning_rate": 0.5}}, r"trainer\.learning_rate cannot be set: it is in"),
        ({"methods": {"opd": {"learning_rate": 0}}}, r"methods\.opd\.learning_rate is 0; rates are numbers above 0"),
        (
            {"methods": {"opd": {"learning_rate": {"on": 1e-4}}}},
            r"has 'on', which is not a setting \(did you mean 'one'",
        ),
        ({"methods": {"opd": {"num_generations": 2}}}, r"methods\.opd\.num_generations cannot be set"),
        ({"methods": {"opd": {"lr_scheduler_type": "linear"}}}, "its last step is unknown"),
        ({"trainer": {"guidance_beta": 0.1}}, "a setting of a method, and belongs under `methods`"),
        ({"select_on": "acuracy"}, "did you mean 'accuracy'"),
        ({"divergence_prompts": 0}, "but divergence_prompts is 0"),
        ({"student_tokens": 0}, "whole number of at least 1"),
    ],
)
def test_a_wrong_plan_is_refused_in_a_sentence(plan_data, changes, message):
    data = {name: value for name, value in {**plan_data, **changes}.items() if value is not ...}
    with pytest.raises(ValueError, match=message):
        read_plan(data)


PLAN = """\
settings:
  a setting: {domains: [mathematics], student: student, teacher: generalist}
methods:
  opd:
  slow: {method: opd, learning_rate: 1e-5}
seeds: [1, 2]
student_tokens: 1000
prompts: {train: 8, validation: 4, test: 4}
max_length: 16
learning_rates: [1e-4, 3.0e-3, 1E-2]
title: 2026
trainer: {weight_decay: 1e-1, report_to: []}
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(text, name="plan.yaml"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return name

    return write


def test_a_plan_is_written_in_the_dialect_of_every_configuration(file):
    plan = load_plan(file(PLAN))
    assert plan.learning_rates == [1e-4, 3e-3, 1e-2] and plan.fixed_rate("a setting", "slow") == 1e-5
    assert plan.title == "2026" and plan.trainer == {"weight_decay": 0.1, "report_to": []}


def test_a_plan_may_start_from_another(file):
    file(PLAN, "base.yaml")
    plan = load_plan(file("extends: base.yaml\nseeds: [3]\nmethods: {tropd: }\n"))
    assert plan.seeds == [3] and list(plan.methods) == ["opd", "slow", "tropd"] and plan.max_length == 16


@pytest.mark.parametrize(
    ("line", "wrong", "sentence"),
    [
        (2, "  a setting: {domains: [additons], student: x, teacher: y}", "settings.a setting.domains has 'additons'"),
        (2, "  a setting: {domains: [additions], studnt: x}", "settings.a setting has 'studnt', which is unknown"),
        (4, "  opd: {gate: hrad}", "methods.opd: gate is 'hrad'"),
        (5, "  slow: {method: opd, learning_rate: fast}", "methods.slow.learning_rate is 'fast'"),
        (5, "  opd: {method: fkl}", "methods.opd was already given (plan.yaml, line 4); keep one of them."),
        (5, "  slow: {method: opd, method: fkl}", "methods.slow.method was already given"),
        (6, "seeds: [1.5]", "seeds is [1.5]; input should be a valid integer"),
        (7, "student_tokens: many", "student_tokens is 'many'; input should be a valid integer"),
        (8, "prompts: {train: 0, validation: 4, test: 4}", "prompts.train is 0; use a whole number"),
        (9, "max_lenth: 16", "the plan has 'max_lenth', which is unknown (did you mean 'max_length'?)"),
        (12, "trainer: {max_steps: 3}", "trainer.max_steps cannot be set"),
    ],
)
def test_a_mistake_in_a_plan_is_named_by_its_line(file, line, wrong, sentence):
    lines = PLAN.splitlines()
    lines[line - 1] = wrong
    with pytest.raises(ValueError) as error:
        load_plan(file("\n".join(lines)))
    assert str(error.value).startswith(f"plan.yaml, line {line}: {sentence}")


def test_a_plan_that_lacks_something_is_named_by_its_file(file):
    with pytest.raises(ValueError, match=r"^plan\.yaml: the plan lacks seeds"):
        load_plan(file(PLAN.replace("seeds: [1, 2]\n", "")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"domains": ["mathematic"]}, "did you mean 'mathematics'"),
        ({"domains": []}, "has no prompts"),
        ({"stories": [4, 12]}, "has domains and stories"),
        ({"teacher": ""}, "names no teacher"),
        ({"teacher": "", "teachers": {"code": "x"}}, "give one for each of its domains: mathematics"),
        ({"teachers": {"mathematics": "x"}}, "has teacher and teachers"),
        ({"student": {"layers": [0]}}, "keep_layers"),
        ({"domains": [], "data": {"train": "a.jsonl"}}, "one file each for"),
    ],
)
def test_a_wrong_setting_is_refused_in_a_sentence(plan_data, changes, message):
    plan_data["settings"]["one"] |= changes
    with pytest.raises(ValueError, match=message):
        read_plan(plan_data)


def test_fields_that_the_trainer_does_not_have_are_refused_before_anything_runs(plan_data):
    fields = {"trainer": {"max_grad_norm": 0.5}, "methods": {"opd": {"weight_decay": 0.1}}}
    check_trainer_fields(read_plan(plan_data | fields))
    for wrong, where in (
        ({"methods": {"opd": {"gaet": "expected"}}}, r"methods\.opd has 'gaet'.*did you mean 'gate'"),
        ({"trainer": {"max_grad_nrom": 1}}, r"trainer has 'max_grad_nrom'.*did you mean 'max_grad_norm'"),
    ):
        with pytest.raises(ValueError, match=where):
            check_trainer_fields(read_plan(plan_data | wrong))


def results(plan, scores, failed=()):
    return {
        cell.name: {
            "failure": "collapsed" if cell.learning_rate in failed else None,
            "scores": None if scores[cell.learning_rate] is None else {plan.select_on: scores[cell.learning_rate]},
        }
        for cell in grid_cells(plan, "one", "opd")
    }


def test_the_grid_chooses_the_best_rate_that_did_not_fail(plan_data):
    plan = read_plan(plan_data | {"learning_rates": [1e-4, 1e-3, 1e-2]})

    def chosen(scores, failed=()):
        return choose_learning_rate(plan, "one", "opd", results(plan, scores, failed))

    assert chosen({1e-4: 0.3, 1e-3: 0.2, 1e-2: 0.1}) == 1e-2
    assert chosen({1e-4: 0.3, 1e-3: 0.2, 1e-2: 0.1}, failed=[1e-2]) == 1e-3
    assert chosen({1e-4: 0.2, 1e-3: 0.2, 1e-2: None}) == 1e-4, "of equals the smaller"
    everywhere = {1e-4: 0.3, 1e-3: 0.2, 1e-2: 0.1}
    assert chosen(everywhere, failed=everywhere) == 1e-2, "all collapsed: a row all the same"
    assert chosen(dict.fromkeys([1e-4, 1e-3, 1e-2])) is None


def test_accuracy_is_better_when_larger(plan_data):
    plan = read_plan(plan_data | {"select_on": "accuracy", "learning_rates": RATES})
    assert choose_learning_rate(plan, "one", "opd", results(plan, {1e-3: 0.3, 3e-3: 0.2})) == 1e-3


def test_reported_cells_are_known_once_the_grid_is_done(plan_data):
    plan = read_plan(plan_data | {"learning_rates": RATES})
    cells, rate = next_cells(plan, ("one", "opd"), {})
    assert rate is None and {cell.kind for cell in cells} == {"grid"}
    cells, rate = next_cells(plan, ("one", "opd"), results(plan, {1e-3: 0.1, 3e-3: 0.2}))
    assert rate == 1e-3 and cells[2:] == [Cell("one", "opd", 1e-3, seed, "report") for seed in (1, 2)]


def test_one_rate_needs_no_grid(plan_data):
    plan = read_plan(plan_data)
    assert [cell.kind for cell in next_cells(plan, ("one", "opd"), {})[0]] == ["report", "report"]


def test_only_takes_settings_methods_and_patterns(plan_data):
    plan_data["settings"]["two"] = plan_data["settings"]["one"]
    plan = read_plan(plan_data)
    assert pairs(plan, ["two"]) == [("two", "opd"), ("two", "tropd")]
    assert pairs(plan, ["opd"]) == [("one", "opd"), ("two", "opd")]
    assert pairs(plan, ["*/tropd", "one/opd"]) == [("one", "opd"), ("one", "tropd"), ("two", "tropd")]
    with pytest.raises(ValueError, match="--only is 'three'"):
        pairs(plan, ["three"])


def test_a_methods_own_rate_needs_no_grid_and_may_differ_by_setting(plan_data):
    rates = {"learning_rates": RATES, "methods": {"opd": {"learning_rate": {"one": 3e-5}}, "tropd": None}}
    plan = read_plan(plan_data | rates)
    cells, rate = next_cells(plan, ("one", "opd"), {})
    assert rate == 3e-5 and {(cell.kind, cell.learning_rate) for cell in cells} == {("report", 3e-5)}
    assert {cell.kind for cell in next_cells(plan, ("one", "tropd"), {})[0]} == {"grid"}
