"""The results of a comparison as Markdown and as a plot."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..evaluation.statistics import estimate, paired_difference
from .plan import Cell, Recipe, grid_cells, report_cells

COLUMNS = (
    ("student_states", "reverse_kl"),
    ("student_states", "forward_kl"),
    ("teacher_states", "reverse_kl"),
    ("teacher_states", "forward_kl"),
    ("student_states", "total_variation"),
)
MOMENTS = (0.0, 0.25, 0.5, 0.75, 1.0)


def results_markdown(
    recipe: Recipe, chosen: Mapping[str, float], results: Mapping[str, Any], before: Mapping[str, Any]
) -> str:
    """Main table, paired differences to `opd`, curves, the grid, and every cell."""
    cells = report_cells(recipe, chosen)
    parts = [
        "### Final distance to the teacher (test prompts, exact, nats per token; mean ± standard error over seeds)\n",
        _main_table(recipe, chosen, cells, results, before),
        "\n### Paired differences (negative: closer to the teacher; 95% interval of Student's t over seeds)\n",
        _difference_table(recipe, cells, results),
        "\n### Over training (mean over seeds at 0, 25, 50, 75 and 100% of the steps)\n",
        _curve_table(recipe, cells, results),
        f"\n### Learning-rate grid (validation {recipe.select_on}, seed {recipe.grid_seed})\n",
        _grid_table(recipe, results),
        "\n### Every reported cell\n",
        _cell_table(cells, results),
    ]
    return "\n".join(parts)


def _main_table(recipe, chosen, cells, results, before) -> str:
    head = ["method", "lr", "steps", "student tokens", *[_column_title(*column) for column in COLUMNS]]
    untrained = ["untrained", "", "0", "0", *[f"{before['test'][states][name]:.3f}" for states, name in COLUMNS]]
    rows = [untrained]
    for label in recipe.methods:
        mine = [results[cell.name] for cell in cells if cell.label == label]
        tokens = sum(result["student_tokens"] for result in mine) / len(mine)
        values = [str(estimate([result["test"][s][n] for result in mine])) for s, n in COLUMNS]
        failed = sum(bool(result["failure"]) for result in mine)
        name = f"{label} ({failed} of {len(mine)} failed)" if failed else label
        rows.append([name, f"{chosen[label]:g}", f"{mine[0]['steps']}", f"{tokens:,.0f}", *values])
    return _table(head, rows)


def _difference_table(recipe, cells, results) -> str:
    references = [name for name in ("opd", "mask_outlier") if name in recipe.methods]
    head = ["method", *[f"{_column_title(*column)} − {ref}" for ref in references for column in COLUMNS[:2]]]
    rows = []
    for label in recipe.methods:
        row = [label]
        for reference in references:
            for states, name in COLUMNS[:2]:
                pair = [
                    [results[c.name]["test"][states][name] for c in cells if c.label == which]
                    for which in (label, reference)
                ]
                row.append("–" if label == reference else _interval(paired_difference(*pair)))
        rows.append(row)
    return _table(head, rows)


def _interval(difference) -> str:
    if difference.n == 1:
        return f"{difference.mean:+.3f}"
    mark = " *" if difference.excludes_zero else ""
    return f"{difference.mean:+.3f} ± {difference.half_width:.3f}{mark}"


def _curve_table(recipe, cells, results) -> str:
    names = ("trust/fraction", "grad_norm", "entropy/student")
    rows = [
        [
            label,
            *[
                " → ".join(
                    f"{_mean_at([results[c.name]['curves'][name] for c in cells if c.label == label], moment):.2f}"
                    for moment in MOMENTS
                )
                for name in names
            ],
        ]
        for label in recipe.methods
    ]
    return _table(["method", *names], rows)


def _mean_at(curves: list[list[float]], moment: float) -> float:
    # A window of five steps, since single steps are noisy.
    values = []
    for curve in curves:
        centre = round(moment * (len(curve) - 1))
        values += curve[max(0, centre - 2) : centre + 3]
    return sum(values) / len(values)


def _grid_table(recipe: Recipe, results) -> str:
    states, metric = recipe.select_on.split("/")
    rows = []
    for label in recipe.methods:
        mine = [results[cell.name] for cell in grid_cells(recipe) if cell.label == label]
        rows.append([label, *["failed" if r["failure"] else f"{r['validation'][states][metric]:.3f}" for r in mine]])
    return _table(["method", *[f"{rate:g}" for rate in recipe.learning_rates]], rows)


def _cell_table(cells: list[Cell], results) -> str:
    rows = []
    for cell in cells:
        result = results[cell.name]
        values = [f"{result['test'][states][name]:.4f}" for states, name in COLUMNS]
        rows.append([cell.name, f"{result['student_tokens']:,}", *values, result["failure"] or ""])
    return _table(["cell", "student tokens", *[_column_title(*column) for column in COLUMNS], "failure"], rows)


def _column_title(states: str, name: str) -> str:
    return f"{name.replace('_', ' ')}, {states.replace('_', ' ')}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]
    return "\n".join(lines) + "\n"


def plot_curves(recipe: Recipe, chosen: Mapping[str, float], results: Mapping[str, Any], path: str | Path) -> None:
    """Trust fraction and gradient norm over student tokens: one line a method, a band over seeds. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(12, 4.6), constrained_layout=True)
    for axis, name, title in zip(
        axes, ("trust/fraction", "grad_norm"), ("trust fraction", "gradient norm"), strict=True
    ):
        for colour, label in enumerate(recipe.methods):
            runs = [results[c.name]["curves"][name] for c in report_cells(recipe, chosen) if c.label == label]
            shortest = min(map(len, runs))
            smooth = [_smooth(run[:shortest]) for run in runs]
            share = [(step + 1) / shortest for step in range(shortest)]
            low, high = [min(v) for v in zip(*smooth, strict=True)], [max(v) for v in zip(*smooth, strict=True)]
            middle = [sum(v) / len(v) for v in zip(*smooth, strict=True)]
            axis.plot(share, middle, label=label, color=f"C{colour}", linewidth=1.6)
            axis.fill_between(share, low, high, color=f"C{colour}", alpha=0.15, linewidth=0)
        axis.set_xlabel("share of the run")
        axis.set_title(title)
        axis.grid(alpha=0.3)
    axes[1].set_yscale("log")
    axes[0].legend(fontsize=8, ncols=2)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _smooth(values: list[float], width: int = 9) -> list[float]:
    half = width // 2
    windows = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]
