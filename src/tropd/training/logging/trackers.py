"""Logged rollouts in the trackers of `report_to`, and the host's timings kept from one that has not begun."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from ...models.hidden_states import replaced
from .marked import LEGEND, mark_response

NAME = "rollouts"
COLUMNS = ("step", "row", "prompt", "rollout", "tokens", "outliers", "lowest r", "ended")


def without_trackers(args: Any) -> AbstractContextManager[None]:
    """Inside, TRL reports its timings to no tracker: before training none has started, and trackio would refuse."""
    return replaced(args, "report_to", [])


def row_of(record: Mapping[str, Any]) -> list[Any]:
    """A logged rollout as a row of the trackers' table."""
    tokens = record["tokens"]
    ratios = [token["log_ratio"] for token in tokens if token["log_ratio"] is not None]
    return [
        record["step"],
        record["row"],
        record["prompt"],
        mark_response(record),
        len(tokens),
        sum(token["region"] == "outlier" for token in tokens),
        min(ratios, default=None),
        record["ended_by"] is not None,
    ]


def track_rollouts(records: Sequence[Mapping[str, Any]], trainer: Any) -> None:
    """Give the rollouts of a step to Weights & Biases, trackio and TensorBoard, as far as `report_to` names them."""
    rows = [row_of(record) for record in records]
    step = trainer.state.global_step
    for name in trainer.args.report_to:
        if name in _TABLES:
            _TABLES[name](rows, step, trainer)


def _to_wandb(rows: list[list[Any]], step: int, trainer: Any) -> None:
    import wandb

    if wandb.run is not None:
        # The step as the host gives it: its own metrics are drawn over this one.
        wandb.log({NAME: wandb.Table(columns=list(COLUMNS), data=rows), "train/global_step": step})


def _to_trackio(rows: list[list[Any]], step: int, trainer: Any) -> None:
    import pandas
    import trackio

    table = trackio.Table(dataframe=pandas.DataFrame(rows, columns=list(COLUMNS)))
    trackio.log({NAME: table, "train/global_step": step})


def _to_tensorboard(rows: list[list[Any]], step: int, trainer: Any) -> None:
    from transformers.integrations import TensorBoardCallback

    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
            callback.tb_writer.add_text(NAME, as_markdown(rows), step)


def as_markdown(rows: Sequence[Sequence[Any]]) -> str:
    """A table whose cells are shown as they are, newlines included."""
    head = f"{LEGEND}\n\n| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}\n"
    return head + "".join(f"| {' | '.join(_cell(value) for value in row)} |\n" for row in rows)


def _cell(value: Any) -> str:
    if not isinstance(value, str):
        return "" if value is None else f"{value}"
    for letter, shown in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("\n", "↵ ")):
        value = value.replace(letter, shown)
    return "".join(f"&#{ord(letter)};" if letter in "|*_`[]\\~#$" else letter for letter in value)


_TABLES = {"wandb": _to_wandb, "trackio": _to_trackio, "tensorboard": _to_tensorboard}
