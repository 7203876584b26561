"""A report's charts as Vega-Lite specifications; colours of text and lines are left to the page's light or dark."""

from __future__ import annotations

from typing import Any

from kt.judge import OUTCOMES
from kt.records import Record

ROW = 26
"""Height of a row of bars or dots, in pixels."""

BAR = {"type": "bar", "tooltip": True}


def spec_of(chart: Record) -> Record:
    """Return the specification of a chart: {"kind", "title", "values"}."""
    base: Record = {
        "title": chart["title"],
        "width": "container",
        "height": 200,
        "data": {"values": chart["values"]},
        "background": "transparent",
    }
    return base | _KINDS[chart["kind"]](chart["values"])


def _facts(_: list[Record]) -> Record:
    axis = {"labelAngle": 0, "labelOverlap": True}
    x = _field("facts", "ordinal", "facts") | {"axis": axis}
    return {"mark": BAR, "encoding": {"x": x, "y": _field("items", "quantitative", "items")}}


def _perplexity(_: list[Record]) -> Record:
    x = _field("from", "quantitative", "perplexity") | {
        "scale": {"type": "log"},
        "bin": {"binned": True},
        "axis": {"labelOverlap": "greedy"},
    }
    y = _field("facts", "quantitative", "facts") | {"stack": True}
    colour = _field("kind", "nominal", None) | {"scale": {"domain": ["difficult", "not difficult"]}}
    return {"mark": BAR, "encoding": {"x": x, "x2": {"field": "to"}, "y": y, "color": colour}}


def _outcomes(values: list[Record]) -> Record:
    """Bars of wins, ties and losses; over the wins, which begin at 0, a whisker from low to high."""
    scale = {"domain": list(OUTCOMES), "range": ["#4aa36b", "#9aa3b2", "#d9733f"]}
    colour = _field("outcome", "nominal", None) | {"scale": scale}
    y = _field("comparison", "nominal", None) | {"sort": None, "axis": {"labelLimit": 260}}
    x = _field("share", "quantitative", "share of pairs, and the interval of the wins") | {
        "scale": {"domain": [0, 1]},
        "stack": "zero",
    }
    bars = {"mark": BAR, "encoding": {"x": x, "color": colour, "order": {"field": "order", "type": "quantitative"}}}
    whiskers = {
        "transform": [{"filter": "datum.outcome == 'win' && isValid(datum.low)"}],
        "mark": {"type": "errorbar", "ticks": {"color": "#14171c"}, "rule": {"color": "#14171c"}},
        "encoding": {"x": _field("low", "quantitative", None), "x2": {"field": "high"}},
    }
    rows = len({value["comparison"] for value in values})
    return {"height": ROW * rows, "usermeta": {"wide": True}, "encoding": {"y": y}, "layer": [bars, whiskers]}


def _intervals(values: list[Record]) -> Record:
    """A dot for each method's figure, with whiskers from low to high."""
    figures, methods = ({value[name]: None for value in values} for name in ("figure", "method"))
    y = _field("figure", "nominal", None) | {"sort": None, "axis": {"labelLimit": 260}}
    x: Record = {"type": "quantitative", "title": None, "scale": {"zero": False, "nice": True}}
    colour = _field("method", "nominal", None) | {"sort": None}
    shared = {"y": y, "yOffset": {"field": "method", "sort": None}, "color": colour}
    tooltip = [{"field": name, "type": "nominal"} for name in ("method", "figure", "value", "low", "high")]
    whiskers = {"mark": {"type": "errorbar", "ticks": True}, "encoding": {"x": {**x, "field": "low"}, "x2": {"field": "high"}}}
    dots = {
        "mark": {"type": "point", "filled": True, "size": 70},
        "encoding": {"x": {**x, "field": "value"}, "tooltip": tooltip},
    }
    height = max(70, 18 * len(figures) * len(methods) + 14 * len(figures))
    return {"height": height, "encoding": shared, "layer": [whiskers, dots]}


def _curve(_: list[Record]) -> Record:
    y = _field("value", "quantitative", None) | {"scale": {"zero": False}}
    encoding = {"x": _field("step", "quantitative", "step"), "y": y, "color": _field("figure", "nominal", None)}
    return {"mark": {"type": "line", "point": True, "tooltip": True}, "encoding": encoding}


def _field(name: str, kind: str, title: str | None) -> dict[str, Any]:
    return {"field": name, "type": kind, "title": title}


_KINDS = {"facts": _facts, "perplexity": _perplexity, "outcomes": _outcomes, "intervals": _intervals, "curve": _curve}
