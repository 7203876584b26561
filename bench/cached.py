"""Cache hits through kt's client, and a whole cached `kt build-data`, against a bare SELECT by key on the same files.

    python bench/cached.py [../shared/data/dolly_train.json] [--items 4000] [--rounds 5]

The cache is filled first, from an instant local server. A lookup starts at the request: canonical JSON, its hash, the
SELECT, the Completion. The build is the whole command with its start-up. Beside kt: the peers, asked again what they
have in their caches (bench/README.md says how to install those).
"""

import argparse
import json
import sqlite3
import tempfile
import time
from pathlib import Path

from first_run import PEERS
from instant_server import instant_server
from measured import (
    DOLLY,
    interleaved,
    kt_command,
    median_ratio,
    medians,
    peer_rate,
    peers_python,
    prompts,
    report,
    run,
    seconds,
    target,
)
from memory import write_items

IN_MEMORY = "DSPy, cache in memory"
"""For scale: DSPy keeps what it has read in memory too, so asked twice in one process it reads no disk."""

SELECT = "SELECT text FROM completions WHERE key = ?"


def select_rate(path: Path) -> float:
    """Bare SELECTs a second, of all keys in the order in which they were stored."""
    with sqlite3.connect(path) as db:
        keys = [row[0] for row in db.execute("SELECT key FROM completions ORDER BY rowid")]
        execute, started = db.execute, time.perf_counter()
        for key in keys:
            execute(SELECT, (key,)).fetchone()
        return len(keys) / (time.perf_counter() - started)


def requests(count: int):
    from kt.request import chat, plain_params

    params = plain_params({"temperature": 0, "max_tokens": 384})
    return [chat([{"role": "user", "content": text}], params) for text in prompts(count)]


def fill_cache(path: Path, url: str, count: int) -> None:
    """Ask every request once."""
    from kt.cache import Cache
    from kt.client import Client
    from kt.endpoint import Endpoint
    from kt.pipeline import Step, fill

    asked = ({"id": number, "request": request} for number, request in enumerate(requests(count)))
    step = Step("ask", lambda record: [record["request"]], lambda _record, _found: [])
    with Cache(path) as cache, Client(cache, [Endpoint("openai", [url], "m")]) as client:
        client.run(fill(step, asked, client, lambda: None))


def lookup_rate(path: Path, count: int) -> float:
    """Hits a second through kt's client, from the request objects."""
    from kt.cache import Cache
    from kt.client import Client
    from kt.endpoint import Endpoint

    asked = requests(count)
    with Cache(path, read_only=True) as cache, Client(cache, [Endpoint("openai", ["http://127.0.0.1:9"], "m")]) as client:
        backend, lookup, started = client.backends[0], client.lookup, time.perf_counter()
        found = sum(lookup(backend, request) is not None for request in asked)
        rate = count / (time.perf_counter() - started)
    if found != count:
        raise SystemExit(f"{found} hits of {count}")
    return rate


def build(folder: Path, data: Path, items: int, *backend: str) -> int:
    """Run the whole command; give the number of calls that it had answered."""
    plain = ["--prompts", "compact", "--difficulty", "all", "--model", "m", "--quiet", "--json", "--limit", str(items)]
    places = ["--data", str(data), "--cache", str(folder / "build.sqlite"), "--out", str(folder / "out")]
    counters = json.loads(run([kt_command(), "build-data", *backend, *plain, *places]))["counters"]
    return counters["sent"] + counters["hits"]


def build_rate(folder: Path, data: Path, items: int, calls: int) -> float:
    return calls / seconds(lambda: build(folder, data, items, "--backend", "replay"))


def measure(folder: Path, url: str, rule_url: str, options: argparse.Namespace) -> dict[str, list[float]]:
    data = options.data
    if not data.exists():
        data = folder / "items.jsonl"
        write_items(data, options.items)
    fill_cache(folder / "hits.sqlite", url, options.prompts)
    calls = build(folder, data, options.items, "--backend", "vllm", "--base-url", rule_url)
    ways = {
        "SELECT, hits": lambda: select_rate(folder / "hits.sqlite"),
        "kt, hits": lambda: lookup_rate(folder / "hits.sqlite", options.prompts),
        "SELECT, build": lambda: select_rate(folder / "build.sqlite"),
        "kt build-data, replay": lambda: build_rate(folder, data, options.items, calls),
    }
    python = peers_python()
    for name in (*PEERS[1:], IN_MEMORY) if python else ():
        ways[name] = lambda name=name: peer_rate(python, "cached", name, url, options.prompts)
    return interleaved(ways, options.rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="?", type=Path, default=DOLLY)
    parser.add_argument("--items", type=int, default=4000)
    parser.add_argument("--prompts", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, instant_server() as url, instant_server("--rule") as rule_url:
        found = measure(Path(name), url, rule_url, options)
    rates = medians(found)
    peers = [name for name in PEERS if name in rates]
    best = max(peers, key=rates.get) if peers else None
    report(
        "cached",
        {
            "items": options.items,
            "prompts": options.prompts,
            "per_second": {name: round(rate, 1) for name, rate in rates.items()},
            "rounds": {name: [round(x, 1) for x in numbers] for name, numbers in found.items()},
            "kt hits / SELECT": target(median_ratio(found, "kt, hits", "SELECT, hits"), 0.35),
            f"kt hits / best peer ({best or 'none installed: see bench/README.md'})": target(
                median_ratio(found, "kt, hits", best) if best else None, 5.0
            ),
            "kt hits / DSPy in memory": round(median_ratio(found, "kt, hits", IN_MEMORY), 2) if best else None,
            "kt build-data / SELECT": target(median_ratio(found, "kt build-data, replay", "SELECT, build"), 0.12),
        },
    )


if __name__ == "__main__":
    main()
