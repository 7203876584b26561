"""README's first command: both data sets of a small world with the tiny teacher through llama.cpp, then a replay.

Everything is real and small: the teacher is a model of two million parameters that this project trained (docs/teacher.md).
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from kt.build import BuildResult, build_data
from kt.client import Counters
from kt.config import BuildConfig
from kt.demo.teacher import SHIPPED_TEACHER
from kt.demo.world import make_world, question_items, write_questions
from kt.gguf import write_gguf
from kt.progress import Display
from kt.records import file_hash, read_jsonl

QUESTIONS = 24
WORLD_SEED = 7


def main(out: str) -> None:
    """Run it all into the folder `out`."""
    root, started = Path(out), time.monotonic()
    questions = root / "questions.json"
    write_questions(questions, question_items(make_world(WORLD_SEED, QUESTIONS)))
    model = _model(root)
    config = BuildConfig(
        data=[str(questions)],
        out=str(root / "build"),
        cache=str(root / "cache.sqlite"),
        backend="llama-cpp",
        model=str(model),
        offline=True,
        prompts="compact",
        difficulty={"mode": "ppl", "scorer": str(SHIPPED_TEACHER)},  # type: ignore[arg-type]
        server={"max_model_len": 2048},  # type: ignore[arg-type]
    )
    built = _build(config)
    replayed = _build(config.model_copy(update={"out": str(root / "replay"), "backend": "replay"}))
    same = all(file_hash(p) == file_hash(root / "replay/sets" / p.name) for p in (root / "build/sets").iterdir())
    _show(root, built, replayed, same, time.monotonic() - started)


def _model(root: Path) -> Path:
    """Write the shipped teacher as GGUF unless an earlier run has."""
    target = root / "teacher.gguf"
    if not target.exists():
        write_gguf(SHIPPED_TEACHER, target)
    return target


def _build(config: BuildConfig) -> BuildResult:
    counters = Counters()
    with Display(counters) as display:
        return build_data(config, watcher=display, counters=counters, on_wait=display.waiting)


def _show(root: Path, built: BuildResult, replayed: BuildResult, same: bool, seconds: float) -> None:
    sets = root / "build/sets"
    fact = next(read_jsonl(sets / "facts.jsonl"), None)
    pair = next(read_jsonl(sets / "kc.jsonl"), None)
    click.echo(f"\nquestion   {fact['question']}\nanswer     {fact['answer']}" if fact else "\nno answer was usable")
    for place, text in enumerate(fact["facts"] if fact else []):
        kept = "kept as difficult" if place in fact["kept"] else ""  # type: ignore[index]
        click.echo(f"  fact     {text}  perplexity {fact['perplexities'][place]:.1f} {kept}")  # type: ignore[index]
    if pair:
        click.echo(f"chosen     {pair['chosen']}\nrejected   {pair['rejected']}  ({pair['aspect']})")
    click.echo(
        f"\nread {built.read} questions, wrote {built.sets['ka']} rows for stage I and {built.sets['kc']} pairs for stage II"
        f" to {sets}; {built.rejected} records rejected, with reasons\n"
        f"{built.counters.sent} completions and scores from the real model, then a replay without a model:"
        f" {replayed.counters.sent} sent, the same bytes: {'yes' if same else 'NO'}; {seconds:.0f} s in all\n"
        "The model is a tiny teacher for this generated world (docs/teacher.md): use a 7B-class one for real data."
    )
    if not same:
        raise SystemExit(1)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
