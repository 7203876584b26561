"""What a study's answers hold, by the world's oracle: for each answer, for each method, and over the seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from kt.answers import figures, join, read_answers
from kt.demo.oracle import count_facts, read_sentence, sentences_of
from kt.demo.world import MENTIONS, World
from kt.facts import totals
from kt.intervals import mean, ratio, ratio_difference
from kt.records import Record, file_hash, write_json, write_jsonl
from kt.train_config import ExperimentConfig

FIGURES = {
    "correct": "# correct",
    "incorrect": "# incorrect",
    "correct_share": "% correct",
    "completeness": "completeness, %",
    "elsewhere": "of another town",
    "other": "other sentences",
    "repeated": "repeats",
}
"""Of every method, with their headings. Counts are means an answer, of different facts; "% correct" is all right facts over
all facts; "completeness" the share of the gold answers' facts that are stated rightly, in whatever words; facts of another
town than the one asked about count as right or wrong like the others, and are counted here too; "other" sentences are no
facts of the world: ill-formed, or of a town that there is not; a fact said again is a repeat, and counts once."""
SHARES = ("correct_share", "completeness")


# ---- one experiment ----------------------------------------------------------------------------------------------------


def count_answers(config: ExperimentConfig, world: World) -> list[Record]:
    """Count every method's answers and write OUT/facts in the form of `kt evaluate`; return a row an answer."""
    answers = {name: read_answers(name, Path(config.out) / "generate" / name) for name in config.methods}
    items = list(join(config.test, answers, config.limit, lambda _: None))
    rows = [count_answer(world, item, name) for name in config.methods for item in items]
    out = Path(config.out) / "facts"
    write_jsonl(out / "facts" / "records.jsonl", rows)
    methods = {name: figures(items, name, config.seed) | _counted(rows, name, config.seed) for name in config.methods}
    settings = {"metrics": ["facts"], "evidence": "oracle", "world": world.seed, "seed": config.seed}
    used = {"read": len(items), "used": len(items), "rejected": 0}
    write_json(out / "results.json", {"items": used, "settings": settings, "methods": methods})
    outputs = {name: file_hash(out / name) for name in ("results.json", "facts/records.jsonl")}
    inputs = {name: file_hash(Path(config.out) / "generate" / name / "records.jsonl") for name in config.methods}
    write_json(out / "manifest.json", {"kind": "evaluate", "config": settings, "inputs": inputs, "outputs": outputs})
    return rows


def count_answer(world: World, item: Record, name: str) -> Record:
    """Count the facts of a method's answer to an item whose id is its town, as a row of kt.facts.per_answer and more."""
    town, answer = item["id"], item["answers"][name]
    found = count_facts(world, town, answer)
    checked = found.correct + found.wrong
    gold, told = _told(world, item["gold"], town), _told(world, answer, town)
    return {
        "id": f"{town}/{name}",
        "item": town,
        "name": name,
        "facts": checked,
        "correct": found.correct,
        "incorrect": found.wrong,
        "unchecked": 0,
        "repeated": found.repeated,
        "correct_share": round(found.correct / checked, 6) if checked else None,
        "elsewhere": sum(about != town for about, _, _ in told),
        "other": found.other,
        "gold": len(gold),
        "gold_stated": len(gold & told),
        "mentions": _by_mentions(world, told),
    }


def _by_mentions(world: World, told: set[tuple[str, str, str]]) -> dict[str, list[int]]:
    """Count [right, wrong] facts by how often the documents mention the fact of that town and attribute."""
    found = {str(times): [0, 0] for times in sorted(set(MENTIONS))}
    for name, attribute, value in told:
        town = world.entities[name]
        found[str(town.mentions[attribute])][town.values[attribute] != value] += 1
    return found


def _told(world: World, text: str, topic: str) -> set[tuple[str, str, str]]:
    """Return what a text says of towns that there are: (town, attribute, value)."""
    read = [read_sentence(sentence, topic) for sentence in sentences_of(text)]
    return {(one.entity, one.attribute, one.value) for one in read if one is not None and one.entity in world.entities}


def _counted(rows: Sequence[Record], name: str, seed: int) -> Record:
    own = [row for row in rows if row["name"] == name]
    stated, gold = [row["gold_stated"] for row in own], [row["gold"] for row in own]
    found = totals(rows, name, 0, seed) | {"completeness": ratio(stated, gold, seed, f"facts:{name}:completeness")}
    return {"facts": found | {"other_per_answer": mean([row["other"] for row in own], seed, f"facts:{name}:other")}}


# ---- over the seeds ----------------------------------------------------------------------------------------------------


def summary(methods: Sequence[str], counted: Mapping[int, Sequence[Record]], seed: int) -> Record:
    """Return every figure of every method: its mean over the seeds, its spread (standard deviation), its value for each.

    "against sft" has the differences from SFT with 95 % intervals, from resampling the test towns: the answers of all
    seeds about a town stay together.
    """
    by_method: dict[str, dict[str, Any]] = {}
    for name in methods:
        own = [[row for row in rows if row["name"] == name] for rows in counted.values()]
        values = {figure: [_figure(figure, rows) for rows in own] for figure in FIGURES}
        by_method[name] = {figure: _spread(found) for figure, found in values.items()}
        by_method[name]["by mentions"] = _mean_by_mentions([row for rows in own for row in rows])
        if "sft" in methods and name != "sft":
            by_method[name]["against sft"] = _against(counted, name, "sft", seed)
    towns = len({row["item"] for rows in counted.values() for row in rows})
    return {"seeds": list(counted), "towns": towns, "methods": by_method}


def _figure(figure: str, rows: Sequence[Record]) -> float | None:
    if figure == "correct_share":
        return _share(rows, "correct", "facts")
    if figure == "completeness":
        return _share(rows, "gold_stated", "gold")
    return fmean(row[figure] for row in rows)


def _share(rows: Sequence[Record], part: str, whole: str) -> float | None:
    total = sum(row[whole] for row in rows)
    return sum(row[part] for row in rows) / total if total else None


def _spread(values: Sequence[float | None]) -> Record:
    known = [value for value in values if value is not None]
    middle = round(fmean(known), 6) if known else None
    spread = round(stdev(known), 6) if len(known) > 1 else None
    return {"mean": middle, "spread": spread, "by_seed": [None if v is None else round(v, 6) for v in values]}


def _mean_by_mentions(rows: Sequence[Record]) -> Record:
    """Return right and wrong facts an answer by the facts' mentions in the documents."""
    sides = ("correct", "incorrect")
    return {
        times: {side: round(fmean(row["mentions"][times][place] for row in rows), 6) for place, side in enumerate(sides)}
        for times in rows[0]["mentions"]
    }


def _against(counted: Mapping[int, Sequence[Record]], name: str, other: str, seed: int) -> Record:
    """Return a method's differences from another, paired over towns."""
    one, two = (_by_town(counted, method) for method in (name, other))
    found: Record = {}
    for figure in FIGURES:
        purpose = f"{figure}:{name}:{other}"
        if figure in SHARES:
            part, whole = ("correct", "facts") if figure == "correct_share" else ("gold_stated", "gold")
            mine, theirs = (
                ([town[part] for town in towns.values()], [town[whole] for town in towns.values()]) for towns in (one, two)
            )
            found[figure] = ratio_difference(mine, theirs, seed, purpose)
        else:
            gaps = [(one[town][figure] - two[town][figure]) / len(counted) for town in one]
            found[figure] = mean(gaps, seed, purpose)
    return found


def _by_town(counted: Mapping[int, Sequence[Record]], name: str) -> dict[str, dict[str, int]]:
    """Add up a method's counts by town, over the seeds."""
    kept = ("correct", "incorrect", "facts", "elsewhere", "other", "repeated", "gold", "gold_stated")
    towns: dict[str, dict[str, int]] = {}
    for row in (row for rows in counted.values() for row in rows if row["name"] == name):
        town = towns.setdefault(row["item"], dict.fromkeys(kept, 0))
        for key in kept:
            town[key] += row[key]
    return towns


# ---- as a table --------------------------------------------------------------------------------------------------------


def as_rows(results: Record) -> list[list[str]]:
    """Return the paper's table: a heading, then a row a method; with several seeds, each figure with its spread."""
    lines = [["method", *FIGURES.values()]]
    for name, method in results["methods"].items():
        lines.append([name, *(_cell(figure, method[figure]) for figure in FIGURES)])
    return lines


def _cell(figure: str, found: Record) -> str:
    times, digits = (100, 1) if figure in SHARES else (1, 2)
    if found["mean"] is None:
        return "-"
    spread = f" ± {found['spread'] * times:.{digits}f}" if found["spread"] is not None else ""
    return f"{found['mean'] * times:.{digits}f}{spread}"


def difference_rows(results: Record) -> list[list[str]]:
    """Return the differences from SFT with their intervals, a row a method."""
    lines = [["method less sft", *FIGURES.values()]]
    for name, method in results["methods"].items():
        if "against sft" in method:
            lines.append([name, *(_gap(figure, method["against sft"][figure]) for figure in FIGURES)])
    return lines


def _gap(figure: str, found: Record) -> str:
    times, digits = (100, 1) if figure in SHARES else (1, 2)
    value = found["share"] if figure in SHARES else found["mean"]
    if value is None:
        return "-"
    ends = [f"{end * times:+.{digits}f}" for end in found["interval"] or ()]
    between = f" ({' to '.join(ends)})" if ends else ""
    return f"{value * times:+.{digits}f}{between}"


def mention_rows(results: Record) -> list[list[str]]:
    """Return right and wrong facts an answer by how often the documents mention them, a row a method."""
    by_method = {name: method["by mentions"] for name, method in results["methods"].items()}
    times = list(next(iter(by_method.values())))
    lines = [["method", *(f"{side}, mentioned {n} x" for n in times for side in ("right", "wrong"))]]
    for name, found in by_method.items():
        lines.append([name, *(f"{found[n][side]:.2f}" for n in times for side in ("correct", "incorrect"))])
    return lines


def as_markdown(results: Record) -> str:
    """Return the tables as Markdown."""
    blocks = []
    for lines in (as_rows(results), difference_rows(results), mention_rows(results)):
        if len(lines) > 1:
            head, *rest = (f"| {' | '.join(line)} |" for line in lines)
            blocks.append("\n".join([head, "|" + "---|" * len(lines[0]), *rest]) + "\n")
    return "\n".join(blocks)
