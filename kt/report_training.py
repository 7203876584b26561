"""What a report shows of trainings: their last figures in a table, their logs as curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kt.records import Record, read_jsonl
from kt.report_results import Cell, Table

GROUPS = {
    "loss": ("loss", "eval_loss"),
    "margin of chosen over rejected": ("margin", "rewards/margins"),
    "share of pairs won by the chosen answer": ("accuracy/", "rewards/accuracies"),
}
"""A chart each: its title, and how the names of its figures begin in the trainer's log (kt's or TRL's own names)."""

COLUMNS = ["training", "rows", "steps", "best step", "loss", "held-out loss"]
RESULT = ("steps", "best_step", "loss", "held_out_loss")


def read_log(folder: Path) -> list[Record]:
    """Return the lines of a training's log; none if it has none."""
    path = folder / "curves.jsonl"
    return list(read_jsonl(path)) if path.exists() else []


def training_curves(name: str, log: Sequence[Record]) -> list[Record]:
    """Return the numbers behind a training's charts: loss, margin and pair accuracy of each aspect over the steps."""
    charts = []
    for title, starts in GROUPS.items():
        values = [
            {"step": line["step"], "figure": said(key), "value": value}
            for line in log
            for key, value in line.items()
            if key.startswith(starts) and isinstance(value, int | float)
        ]
        if values:
            charts.append({"kind": "curve", "title": f"Training {name}: {title}", "values": values})
    return charts


def said(figure: str) -> str:
    """Name a figure of a log in words."""
    return {"eval_loss": "held-out loss"}.get(figure, figure.removeprefix("accuracy/").removeprefix("rewards/"))


def training_tables(found: Sequence[tuple[str, Record, Sequence[Record]]]) -> list[Table]:
    """Return a row for each (name, manifest, log): what was trained on, its losses, and the last pair figures it logged."""
    logged = [{key: value for line in log for key, value in line.items()} for _, _, log in found]
    pairs = sorted({key for last in logged for key in last if key.startswith(("margin", "accuracy/", "rewards/"))})
    rows: list[list[Cell]] = []
    for (name, manifest, _), last in zip(found, logged, strict=True):
        result = manifest.get("result", {})
        own = [name, manifest.get("counts", {}).get("rows"), *(result.get(key) for key in RESULT)]
        rows.append([*own, *(last.get(key) for key in pairs)])
    note = "Pair figures are the last that the training logged; an aspect's is the share of its pairs won by the chosen answer."
    return [Table("trainings", "Trainings", [*COLUMNS, *map(said, pairs)], rows, note if pairs else "")]
