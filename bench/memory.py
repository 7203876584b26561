"""Peak memory of `kt build-data` on few and on many made-up items: a first run and the replay of it.

python bench/memory.py [--few 1000] [--many 100000] [--folder DIR]
"""

import argparse
import json
import os
import random
import subprocess
import tempfile
from pathlib import Path

from instant_server import instant_server
from measured import kt_command, report, target

WORDS = ["".join(random.Random(n).choices("aeioulnrst", k=3 + n % 6)) for n in range(3000)]


def write_items(path: Path, count: int) -> None:
    """Questions with answers of three to six short sentences, every one different."""
    with path.open("w") as stream:
        for number in range(count):
            draw = random.Random(number)
            sentences = [" ".join(draw.choices(WORDS, k=9)).capitalize() + "." for _ in range(draw.randint(3, 6))]
            stream.write(
                json.dumps({"id": f"i{number}", "question": f"What is {number}?", "answer": " ".join(sentences)}) + "\n"
            )


def peak_mb(command: list[str]) -> float:
    """Run a command; give the most memory that it had resident at once."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return usage.ru_maxrss / 1024


def build(folder: Path, items: int, *backend: str) -> float:
    data = folder / f"{items}.jsonl"
    if not data.exists():
        write_items(data, items)
    plain = ["--prompts", "compact", "--difficulty", "all", "--model", "m", "--quiet"]
    places = ["--data", str(data), "--cache", str(folder / f"{items}.sqlite"), "--out", str(folder / f"out-{items}")]
    return peak_mb([kt_command(), "build-data", *backend, *plain, *places])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--few", type=int, default=1000)
    parser.add_argument("--many", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="where the files go: some 4 GB for 100,000 items")
    options = parser.parse_args()
    sizes = (options.few, options.many)
    with tempfile.TemporaryDirectory(dir=options.folder) as name, instant_server("--rule") as url:
        folder = Path(name)
        first = {size: build(folder, size, "--backend", "vllm", "--base-url", url) for size in sizes}
        again = {size: build(folder, size, "--backend", "replay") for size in sizes}
    found = {}
    for way, peaks in (("first run", first), ("replay", again)):
        ratio = target(peaks[options.many] / peaks[options.few], 1.3, at_most=True)
        found[way] = {"peak_mb": {str(size): round(mb, 1) for size, mb in peaks.items()}, **ratio}
    report("memory", found)


if __name__ == "__main__":
    main()
