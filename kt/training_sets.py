"""The training sets as other tools read them: TRL JSONL, Alpaca and ranking JSON with LLaMA-Factory's dataset_info.json."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from kt.compare import ASPECTS, pairs
from kt.records import Record, atomic_file, follow, json_list_writer, jsonl_writer, read_jsonl, write_json


def write_answers(out: Path) -> dict[str, int]:
    """Write stage I's sets from the steps' records into out/sets/ and return the number of rows of each.

    facts: every fact with its perplexity and whether it was kept. sft: D. ka: D and the fine-grained pairs (q*, a*).
    """
    sets = out / "sets"
    return {
        "facts": _write_facts(out, sets / "facts.jsonl"),
        "sft": _write_answers(sets, "sft", _originals(out)),
        "ka": _write_answers(sets, "ka", _augmented(out)),
    }


def files_of(name: str) -> tuple[str, ...]:
    """Return the files that hold a set: as JSONL, and as JSON for LLaMA-Factory."""
    if name == "facts":
        return ("facts.jsonl",)
    return (f"{name}.jsonl", f"{name}.alpaca.json" if name in ("sft", "ka") else f"{name}.ranking.json")


def _step(out: Path, name: str) -> Iterator[Record]:
    path = out / name / "records.jsonl"
    return read_jsonl(path) if path.exists() else iter(())


def _write_facts(out: Path, path: Path) -> int:
    count = 0
    with jsonl_writer(path) as write:
        for record, scored, chosen in follow(_step(out, "extract"), _step(out, "score"), _step(out, "choose")):
            found = {"perplexities": scored["perplexities"]} if scored else {}
            write({**record, **found, "kept": chosen["kept"] if chosen else []})
            count += 1
    return count


def _originals(out: Path) -> Iterator[Record]:
    for item in _step(out, "items"):
        yield {"id": item["id"], "prompt": item["question"], "completion": item["answer"]}


def _augmented(out: Path) -> Iterator[Record]:
    yield from _originals(out)
    for fine in _step(out, "rewrite-answer"):
        yield {"id": f"{fine['id']}/fine", "prompt": fine["question"], "completion": fine["answer"]}


def _write_answers(sets: Path, name: str, rows: Iterator[Record]) -> int:
    count = 0
    with jsonl_writer(sets / f"{name}.jsonl") as trl, json_list_writer(sets / f"{name}.alpaca.json") as alpaca:
        for row in rows:
            trl(row)
            alpaca(orjson.dumps({"instruction": row["prompt"], "input": "", "output": row["completion"]}))
            count += 1
    return count


def write_pairs(out: Path, worse: Mapping[str, Path]) -> dict[str, int]:
    """Write stage II's sets: kc, better and worse answers, one row an aspect, and a set for each aspect alone.

    `worse` names, by aspect, the records that hold the worse answers.
    """
    sets = out / "sets"
    counts = {"kc": 0, **{f"kc-{aspect}": 0 for aspect in worse}}
    with contextlib.ExitStack() as stack:
        trl = {name: stack.enter_context(atomic_file(sets / f"{name}.jsonl")) for name in counts}
        ranking = {name: stack.enter_context(json_list_writer(sets / f"{name}.ranking.json")) for name in counts}
        answers = {aspect: read_jsonl(path) for aspect, path in worse.items()}
        for pair in pairs(_step(out, "extract"), _step(out, "rephrase"), answers):
            line, ranked = orjson.dumps(pair, option=orjson.OPT_APPEND_NEWLINE), orjson.dumps(_ranking(pair))
            for name in ("kc", f"kc-{pair['aspect']}"):
                trl[name].write(line)
                ranking[name](ranked)
                counts[name] += 1
    return counts


def write_preferences(sets: Path, name: str, preferences: Iterable[Record]) -> int:
    """Write one set of preference pairs as JSONL and, with its dataset_info.json, for LLaMA-Factory; return their number."""
    count = 0
    with jsonl_writer(sets / f"{name}.jsonl") as trl, json_list_writer(sets / f"{name}.ranking.json") as ranking:
        for pair in preferences:
            trl(pair)
            ranking(orjson.dumps(_ranking(pair)))
            count += 1
    write_json(sets / "dataset_info.json", {name: _ranked(name)})
    return count


def _ranking(pair: Record) -> Record:
    return {"instruction": pair["prompt"], "input": "", "chosen": pair["chosen"], "rejected": pair["rejected"]}


def dataset_info(aspects: Collection[str]) -> dict[str, Any]:
    """Return what LLaMA-Factory wants to know of the sets, for sets/dataset_info.json."""
    plain = {name: {"file_name": f"{name}.alpaca.json"} for name in ("sft", "ka")}
    ranked = {name: _ranked(name) for name in ("kc", *(f"kc-{aspect}" for aspect in ASPECTS if aspect in aspects))}
    return {**plain, **ranked}


def _ranked(name: str) -> Record:
    columns = {"prompt": "instruction", "query": "input", "chosen": "chosen", "rejected": "rejected"}
    return {"file_name": f"{name}.ranking.json", "ranking": True, "columns": columns}
