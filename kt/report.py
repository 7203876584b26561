"""A finished run as one HTML page that needs no network and no server, or its tables as Markdown, CSV or JSON."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import orjson

from kt import __version__
from kt.records import atomic_file
from kt.report_charts import spec_of
from kt.report_data import Report
from kt.report_results import Cell, Table

_PLACE = re.compile(r"\{\{(\w+)\}\}")
SCRIPTS = ("browse.js", "judged.js", "report.js")
NO_CHARTS = "Charts need the package vl-convert-python: pip install 'kt[report]'."


def write_page(report: Report, path: str | Path) -> bool:
    """Write the page; the same run gives the same bytes. Returns False if it has no charts, their library being absent."""
    library = charts_library()
    script = "".join(_asset(name) for name in SCRIPTS)
    data = {**vars(report), "charts": [spec_of(chart) for chart in report.charts] if library else []}
    data |= {"no_charts": "" if library or not report.charts else NO_CHARTS, "version": __version__}
    values = {
        "title": _text(report.title),
        "policy": _policy([one for one in (library, script) if one]),
        "style": _asset("report.css"),
        "data": _json_in_html(data),
        "library": f"<script>{library}</script>" if library else "",
        "script": script,
    }
    page = _PLACE.sub(lambda place: values[place[1]], _asset("report.html"))
    with atomic_file(path) as stream:
        stream.write(page.encode())
    return bool(library)


def charts_library() -> str:
    """Return Vega, Vega-Lite and Vega-Embed (BSD-3-Clause) as one script, or nothing where vl-convert is not installed."""
    try:
        import vl_convert
    except ImportError:
        return ""
    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")).replace("</script", "<\\/script")


def _policy(scripts: Sequence[str]) -> str:
    """Allow these scripts and no other, and no request at all."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(one.encode()).digest()).decode()}'" for one in scripts)
    rest = "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    return f"default-src 'none'; script-src {hashes}; {rest}"


def _json_in_html(value: Any) -> str:
    """Encode for a script tag: no text of a run can end it, or open another."""
    return orjson.dumps(value).decode().replace("<", "\\u003c")


def _asset(name: str) -> str:
    return files("kt").joinpath("pages", name).read_text("utf-8")


def _text(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")


# ---- tables as text --------------------------------------------------------------------------------------------------


def as_markdown(tables: Sequence[Table]) -> str:
    """Return tables as Markdown."""
    blocks = []
    for table in tables:
        columns = [name for place, name in enumerate(table.columns) if place not in _bounds(table)]
        lines: list[Sequence[Cell]] = [columns, ["---"] * len(columns), *(_with_intervals(table, row) for row in table.rows)]
        rows = "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)
        blocks.append(f"## {table.title}\n\n{rows}\n" + (f"\n{table.note}\n" if table.note else ""))
    return "\n".join(blocks)


def _bounds(table: Table) -> set[int]:
    """Return the places of columns that hold the bounds of the number before them."""
    return {place + offset for place in table.bounded for offset in (1, 2)}


def _with_intervals(table: Table, row: Sequence[Cell]) -> list[Cell]:
    """Return a row with each number and its interval in one cell."""
    bounds, cells = _bounds(table), list(row)
    for place in table.bounded:
        if row[place + 1] is not None:
            cells[place] = f"{row[place]} [{row[place + 1]}, {row[place + 2]}]"
    return [cell for place, cell in enumerate(cells) if place not in bounds]


def _cell(cell: Cell) -> str:
    return "" if cell is None else " ".join(str(cell).split()).replace("|", "\\|")


def as_csv(tables: Sequence[Table]) -> str:
    """Return tables as CSV, one below the other: each row begins with its table's name, each table with its columns."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for table in tables:
        lines: list[Sequence[Cell]] = [table.columns, *table.rows]
        writer.writerows([table.name, *line] for line in lines)
    return text.getvalue()


def as_json(tables: Sequence[Table]) -> list[dict[str, Any]]:
    """Return tables as JSON values, a row an object."""
    return [
        {"name": t.name, "title": t.title, "rows": [dict(zip(t.columns, row, strict=True)) for row in t.rows]} for t in tables
    ]
