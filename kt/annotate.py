"""Blind pairwise judging by people: tasks and judgements in one SQLite file, each on the disk before it counts."""

from __future__ import annotations

import csv
import hashlib
import io
import random
import re
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import orjson

from kt import __version__
from kt.answers import join, read_answers
from kt.errors import InputError, OutputError
from kt.judge import CRITERIA, LETTERS, Outcome
from kt.records import Record, atomic_file, file_hash, input_hashes, output_error, write_json, write_jsonl

FILE = "judgements.sqlite"
COLUMNS = ("id", "item", "criterion", "one", "other", "annotator", "answer_a", "answer_b", "choice", "outcome")
_NAME = re.compile(r"\w[\w .@-]{0,59}")
_SCHEMA = """
CREATE TABLE study (name TEXT PRIMARY KEY, value TEXT NOT NULL);      -- what the study is, as JSON
CREATE TABLE tasks (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, question TEXT NOT NULL, gold TEXT NOT NULL,
    name_a TEXT NOT NULL, text_a TEXT NOT NULL,                       -- the answer shown first, and whose it is
    name_b TEXT NOT NULL, text_b TEXT NOT NULL
);
CREATE TABLE judgements (                                             -- only ever added to; the last one counts
    number INTEGER PRIMARY KEY, annotator TEXT NOT NULL, task TEXT NOT NULL REFERENCES tasks (id),
    criterion TEXT NOT NULL, choice TEXT NOT NULL, made TEXT NOT NULL -- A, B or tie; UTC
);
CREATE INDEX judgements_by_annotator ON judgements (annotator, task, criterion);
"""
_SAID = "SELECT task, criterion, choice FROM judgements WHERE annotator = ?"


class Task(NamedTuple):
    """Two answers to a question in the order in which everyone sees them, and whose they are."""

    id: str
    question: str
    gold: str
    name_a: str
    text_a: str
    name_b: str
    text_b: str


def make_tasks(
    answers: Mapping[str, str | Path], data: Sequence[str], seed: int, limit: int | None, rejects: list[Record]
) -> list[Task]:
    """Join two methods' answers with the test items; which answer stands first is drawn for each item.

    Items that cannot be used go to `rejects`. Raises InputError, naming ids, where the methods answered different items.
    """
    if len(answers) != 2:
        raise InputError(f"--answers was given for {len(answers)} methods; a comparison is of two, each as NAME=DIR")
    found = {name: read_answers(name, place) for name, place in answers.items()}
    tasks = []
    for item in join(data, found, limit, rejects.append):
        names = list(answers)
        random.Random(f"{seed}:annotate:{item['id']}").shuffle(names)
        first, second = names
        texts = item["answers"]
        tasks.append(Task(item["id"], item["question"], item["gold"], first, texts[first], second, texts[second]))
    if not tasks:
        raise InputError(f"{', '.join(data)}: no usable item to judge; see what `kt check --data` says of it")
    return tasks


class Study:
    """An open study: its tasks, and the judgements of all annotators. Several processes may have it open."""

    def __init__(self, out: str | Path) -> None:
        self.out = Path(out)
        self.path = self.out / FILE
        if not self.path.exists():
            raise InputError(f"{self.path}: no study here; start one with --answers NAME=DIR (twice) and --data FILE")
        try:
            self.db = _connect(self.path)
            self.about: Record = {name: orjson.loads(value) for name, value in self.db.execute("SELECT * FROM study")}
            self.tasks = [Task(*row[1:]) for row in self.db.execute("SELECT * FROM tasks ORDER BY number")]
        except (sqlite3.DatabaseError, TypeError) as error:
            raise InputError(f"{self.path}: not a study of `kt annotate` ({error}); give another --out") from error
        self.ids = {task.id for task in self.tasks}

    def close(self) -> None:
        """Close the file."""
        self.db.close()

    def judge(self, annotator: str, task: str, criterion: str, choice: str) -> None:
        """Store one judgement: it is synced to the disk on return. InputError for what is not of this study."""
        check_name(annotator)
        if task not in self.ids or criterion not in CRITERIA or choice not in LETTERS:
            raise InputError(f"no judgement of this study: item {task!r}, criterion {criterion!r}, choice {choice!r}")
        made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        sql = "INSERT INTO judgements (annotator, task, criterion, choice, made) VALUES (?, ?, ?, ?, ?)"
        try:
            self.db.execute(sql, (annotator, task, criterion, choice, made))
        except sqlite3.Error as error:
            raise OutputError(f"{self.path}: the judgement was not saved: {error}; free space or check permissions") from error

    def of(self, annotator: str, task: str | None = None) -> dict[str, dict[str, str]]:
        """Return an annotator's judgements, of one task or all, as {task: {criterion: choice}}; the last said counts."""
        found: dict[str, dict[str, str]] = {}
        if task is None:
            rows = self.db.execute(f"{_SAID} ORDER BY number", (annotator,))
        else:
            rows = self.db.execute(f"{_SAID} AND task = ? ORDER BY number", (annotator, task))
        for judged, criterion, choice in rows:
            found.setdefault(judged, {})[criterion] = choice
        return found

    def annotators(self) -> list[str]:
        """Return the names of all who judged."""
        return [row[0] for row in self.db.execute("SELECT DISTINCT annotator FROM judgements ORDER BY annotator")]

    def records(self) -> Iterator[Record]:
        """Yield every judgement that counts, unblinded, by annotator, item and criterion."""
        one, other = self.about["names"]
        for annotator in self.annotators():
            given = self.of(annotator)
            for task in self.tasks:
                for criterion in CRITERIA:
                    choice = given.get(task.id, {}).get(criterion)
                    if choice is not None:
                        values = (f"{task.id}/{criterion}/{one}/{other}", task.id, criterion, one, other, annotator)
                        said = (task.name_a, task.name_b, choice, outcome_of(task, choice, one))
                        yield dict(zip(COLUMNS, (*values, *said), strict=True))


def check_name(annotator: str) -> None:
    """Raise InputError unless a text can be an annotator's name."""
    if not _NAME.fullmatch(annotator):
        raise InputError(
            f"{annotator[:70]!r} is no annotator's name: up to 60 letters, digits, spaces and . @ -, a letter first"
        )


def outcome_of(task: Task, choice: str, one: str) -> Outcome:
    """Return what a choice between the answers as shown means for the method `one`."""
    if choice == "tie":
        return "tie"
    chosen = task.name_a if choice == "A" else task.name_b
    return "win" if chosen == one else "lose"


def start_study(out: str | Path, answers: Mapping[str, str | Path], data: Sequence[str], seed: int, limit: int | None) -> Study:
    """Start a study in a folder, or go on with the one that is there if its answers, items and seed are the same."""
    rejects: list[Record] = []
    tasks = make_tasks(answers, data, seed, limit, rejects)
    digest = hashlib.sha256(orjson.dumps([seed, list(answers), [list(task) for task in tasks]])).hexdigest()
    path = Path(out) / FILE
    if path.exists():
        study = Study(out)
        if study.about.get("hash") != digest:
            study.close()
            advice = "give another --out, or go on without --answers"
            raise InputError(f"{path}: holds another study (other answers, items or --seed); {advice}")
        return study
    inputs = {f"answers/{name}": file_hash(_records_of(place)) for name, place in answers.items()}
    inputs |= input_hashes(data)
    about = {"hash": digest, "names": list(answers), "seed": seed, "rejected": len(rejects), "inputs": inputs}
    _create(path, about, tasks)
    write_jsonl(Path(out) / "rejected.jsonl", rejects)
    return Study(out)


def _records_of(place: str | Path) -> Path:
    path = Path(place)
    return path / "records.jsonl" if path.is_dir() else path


def _create(path: Path, about: Record, tasks: Sequence[Task]) -> None:
    """Make the file whole under another name first: a study is there with all its tasks, or not at all."""
    draft = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.unlink(missing_ok=True)
        db = _connect(draft)
        db.executescript(f"BEGIN; {_SCHEMA}")
        db.executemany("INSERT INTO study VALUES (?, ?)", [(k, orjson.dumps(v).decode()) for k, v in about.items()])
        db.executemany("INSERT INTO tasks VALUES (?, ?, ?, ?, ?, ?, ?, ?)", [(n, *t) for n, t in enumerate(tasks)])
        db.execute("COMMIT")
        db.close()
        draft.rename(path)
    except OSError as error:
        raise output_error(path, error) from error
    except sqlite3.Error as error:
        raise OutputError(f"{path}: cannot be written: {error}; choose another --out") from error


def _connect(path: Path) -> sqlite3.Connection:
    """Open with a commit that waits for the disk: a judgement survives a power cut, not only a killed process."""
    db = sqlite3.connect(path, timeout=30, isolation_level=None)
    db.execute("PRAGMA synchronous = FULL")
    return db


# ---- what comes out --------------------------------------------------------------------------------------------------


def export(study: Study, path: str | Path) -> int:
    """Write the judgements, unblinded, as JSONL or (a name in .csv) as CSV; return how many."""
    if Path(path).resolve() in [
        study.path.resolve().with_name(study.path.name + end) for end in ("", "-wal", "-shm", "-journal")
    ]:
        raise InputError(f"--export {path}: is the study itself, all judgements are in it; give another file")
    if Path(path).suffix.lower() != ".csv":
        return write_jsonl(path, study.records())
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    rows = list(study.records())
    writer.writerows(rows)
    with atomic_file(path) as stream:
        stream.write(text.getvalue().encode())
    return len(rows)


def write_run(study: Study) -> Record:
    """Write records.jsonl and, last, manifest.json into the study's folder; return the manifest."""
    records = study.out / "records.jsonl"
    (study.out / "manifest.json").unlink(missing_ok=True)
    written = write_jsonl(records, study.records())
    manifest = {
        "kind": "annotate",
        "kt": __version__,
        "config": {"seed": study.about["seed"], "names": study.about["names"], "criteria": list(CRITERIA)},
        "inputs": study.about["inputs"],
        "items": len(study.tasks),
        "rejected": study.about["rejected"],
        "annotators": study.annotators(),
        "written": written,
        "outputs": {"records.jsonl": file_hash(records)},
    }
    write_json(study.out / "manifest.json", manifest)
    return manifest
