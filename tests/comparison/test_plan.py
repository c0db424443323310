"""Recipes: what is read, what is refused, and the budget that all methods share."""

from pathlib import Path

import pytest
import yaml

from tropd.comparison.plan import Cell, choose_learning_rates, grid_cells, load_recipe, report_cells

RECIPE = Path(__file__).parents[2] / "recipes" / "stories260k.yaml"


@pytest.fixture
def recipe():
    return load_recipe(RECIPE)


def written(tmp_path, **changes):
    data = yaml.safe_load(RECIPE.read_text()) | changes
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in data.items() if value is not Ellipsis}))
    return path


def test_the_shipped_recipe_compares_the_eight_methods_of_the_first_run(recipe):
    assert list(recipe.methods) == [
        "opd", "mask_outlier", "reopold", "eopd", "fkl_outlier", "tropd", "fkl", "gkd",
    ]  # fmt: skip
    assert recipe.method_of("gkd").jsd_beta == 1.0
    assert len(grid_cells(recipe)) == 8 * len(recipe.learning_rates)


def test_a_guided_method_takes_more_steps_for_the_same_student_tokens(recipe):
    assert recipe.steps_of("opd") * recipe.rows_per_step * recipe.max_length == recipe.student_tokens
    assert recipe.steps_of("tropd") > 1.5 * recipe.steps_of("opd")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metods": {}}, "unknown keys: metods"),
        ({"seeds": ...}, "lacks: seeds"),
        ({"methods": {"topd": {}}}, "did you mean 'tropd'"),
        ({"methods": {"opd": {"fkl_top_k": 3}}}, "no effect under method 'opd'"),
    ],
)
def test_a_wrong_recipe_is_refused_in_a_sentence(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(written(tmp_path, **changes))


def test_each_method_gets_its_best_rate_and_a_failed_run_is_never_best(recipe):
    def result(cell):
        value = {"opd": abs(cell.learning_rate - 1e-3), "tropd": cell.learning_rate}.get(cell.label, 1.0)
        failed = "collapsed" if (cell.label, cell.learning_rate) == ("tropd", 3e-4) else None
        return {"failure": failed, "validation": {"student_states": {"reverse_kl": value}}}

    chosen = choose_learning_rates(recipe, {cell.name: result(cell) for cell in grid_cells(recipe)})
    assert chosen["opd"] == 1e-3
    assert chosen["tropd"] == 1e-3
    assert report_cells(recipe, chosen)[0] == Cell("opd", 1e-3, 1)
