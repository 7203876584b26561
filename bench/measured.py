"""What the benches share: rounds that take turns, medians, ratios, and where results are kept."""

import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
DOLLY = Path(__file__).parents[2] / "shared" / "data" / "dolly_train.json"


def interleaved(ways: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Let every way take its turn in every round, so that a busy machine is busy for all; give each one's numbers."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, measure in ways.items():
            found[name].append(measure())
            print(f"  round {number + 1}: {name}: {found[name][-1]:,.4g}", file=sys.stderr)
    return found


def medians(found: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(numbers) for name, numbers in found.items()}


def median_ratio(found: dict[str, list[float]], one: str, other: str) -> float:
    """The median of the rounds' ratios: both numbers of a round were taken on an equally busy machine."""
    return statistics.median(a / b for a, b in zip(found[one], found[other], strict=True))


def prompts(count: int) -> list[str]:
    """Prompts of about 1.5 KB, every one different."""
    words = ["".join(random.Random(n).choices("aeioulnrst", k=3 + n % 6)) for n in range(2000)]
    return [f"{n}: " + " ".join(random.Random(n).choices(words, k=220)) for n in range(count)]


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def run(command: list[str], **env: str) -> str:
    """Run a command to its end; its stderr is shown if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env})
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def kt_command() -> str:
    """The installed console script beside this interpreter."""
    return str(Path(sys.executable).with_name("kt"))


def peers_python() -> Path | None:
    """The interpreter of the peers' own environment, or None; bench/README.md says how to make it."""
    path = Path(os.environ.get("KT_BENCH_PEERS", ".venv-peers")) / "bin" / "python"
    return path if path.exists() else None


def peer_rate(python: Path | str, what: str, name: str, url: str, count: int) -> float:
    """Let the peers' own interpreter measure one of them."""
    return float(run([str(python), str(Path(__file__).with_name("peers.py")), what, name, url, str(count)]).split()[-1])


def report(name: str, result: dict) -> None:
    """Keep the result and print it."""
    about = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    result = {**result, "machine": {**about, "load": [round(x, 1) for x in os.getloadavg()]}}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def target(ratio: float | None, wanted: float, *, at_most: bool = False) -> dict:
    """A ratio beside what it has to be."""
    if ratio is None:
        return {"ratio": None, "target": wanted, "reached": None}
    good = ratio <= wanted if at_most else ratio >= wanted
    return {"ratio": round(ratio, 4), "target": wanted, "reached": good}
