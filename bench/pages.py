"""Pages at 4,000 items in headless Chromium: from an interaction to the frame that shows its result, each many times.

python bench/pages.py [RUN] [--items 4000] [--rounds 15]

RUN is any folder that `kt report` reads; without one, `kt demo --quick` is run first and its answers judged by the demo's
teacher. Its items are repeated up to the number asked for.
A page of one button takes its turn among them: what that takes, the machine takes for anything.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from measured import kt_command, report, run
from playwright.sync_api import Page, sync_playwright

from kt.annotate import start_study
from kt.judge import CRITERIA
from kt.records import write_jsonl
from kt.report import write_page
from kt.report_data import read_run

LIMIT_MS = 200
BARE = "data:text/html,<button onclick='this.textContent = Math.random()'>0</button>"
WATCH = """new Promise((done, fail) => {
  const start = performance.now();
  const drawn = () => requestAnimationFrame(() => setTimeout(() => done(performance.now() - start), 0));
  const observer = new MutationObserver(() => { observer.disconnect(); drawn(); });
  observer.observe(document.querySelector("SHOWN"), { childList: true, characterData: true, subtree: true });
  setTimeout(fail, 20000, "nothing changed");
  ACT;
})"""
"""Acts, waits until the element SHOWN changes and the next frame has been made; gives milliseconds."""


def press(key: str) -> str:
    return f"document.body.dispatchEvent(new KeyboardEvent('keydown', {{ key: '{key}', bubbles: true }}))"


def fill(place: str, value: str, event: str) -> str:
    element = f"document.querySelector('{place}')"
    return f"{element}.value = '{value}'; {element}.dispatchEvent(new Event('{event}'))"


def click(place: str) -> str:
    return f"document.querySelector('{place}').click()"


class Bench:
    """A browser page beside the bare one, and what every interaction took, in milliseconds."""

    def __init__(self, page: Page, bare: Page) -> None:
        self.page, self.bare = page, bare
        self.found: dict[str, list[float]] = {}

    def measure(self, name: str, act: str, shown: str) -> None:
        for one, page, do, place in (("a bare button", self.bare, click("button"), "button"), (name, self.page, act, shown)):
            self.found.setdefault(one, []).append(page.evaluate(WATCH.replace("SHOWN", place).replace("ACT", do)))


def browse(bench: Bench, prefix: str, rounds: int, choice: tuple[str, list[str]]) -> None:
    """Search, filter, leaf through and open, in one of the report's two lists."""
    at = f"#{prefix}"
    place, values = choice
    for n in range(rounds):
        bench.measure(f"report: {prefix}search", fill(f"{at}search", f"item-{37 * n + 100}", "input"), f"{at}found")
        bench.measure(f"report: {prefix}search emptied", fill(f"{at}search", "", "input"), f"{at}found")
        bench.measure(f"report: {prefix}next page", click(f"{at}forth"), f"{at}page")
        bench.measure(f"report: {prefix}open", click(f"{at}list li:nth-child({n % 40 + 2}) button"), f"{at}item")
        for value in values:
            bench.measure(f"report: {prefix}filter", fill(place, value, "change"), f"{at}found")


def judge(bench: Bench, rounds: int) -> None:
    """Judge items by keys: two criteria that are marked as saved, and a third that opens the next item."""
    for _ in range(rounds):
        for number, key in enumerate("ab", 1):
            bench.measure("annotate: key, until saved", press(key), f".criterion:nth-child({number}) .mark")
        bench.measure("annotate: last key, until the next item is shown", press("e"), "#place")


def repeated(items: list[dict], count: int) -> list[dict]:
    return [{**items[n % len(items)], "id": f"item-{n}"} for n in range(count)] if items else []


def judged_demo(out: Path) -> None:
    run([kt_command(), "demo", "--quick", "--quiet", "--out", str(out)])
    command = [
        kt_command(),
        "evaluate",
        "--quiet",
        "--data",
        str(out / "questions" / "test.json"),
        "--out",
        str(out / "evaluation"),
    ]
    for name in ("knowtuning", "sft"):
        command += ["--answers", f"{name}={out / 'seed-1/generate' / name}"]
    command += ["--metrics", "meteor-no-wordnet,judge", "--criterion", "completeness", "--criterion", "logicality"]
    command += ["--judge", "kt/demo/weights/teacher.gguf", "--backend", "llama-cpp", "--prompts", "compact"]
    run([*command, "--cache", str(out / "cache.sqlite")])


def report_page(folder: Path, source: Path, count: int) -> Path:
    found = read_run(source)
    found.items, found.judged = repeated(found.items, count), repeated(found.judged, count)
    write_page(found, folder / "report.html")
    return folder / "report.html"


def study(folder: Path, count: int) -> Path:
    """Two methods' answers to `count` items, of which all but 500 are judged."""
    rows = [{"id": f"q{n}", "question": f"What of {n}?", "answer": f"Text about {n}. " * 30} for n in range(count)]
    for name in ("test.jsonl", "mine/records.jsonl", "base/records.jsonl"):
        (folder / name).parent.mkdir(exist_ok=True)
        write_jsonl(folder / name, rows)
    made = start_study(
        folder / "human", {"mine": folder / "mine", "base": folder / "base"}, [str(folder / "test.jsonl")], 42, None
    )
    told = [("Bo", task.id, criterion, "A", "2026-01-01T00:00:00Z") for task in made.tasks[:-500] for criterion in CRITERIA]
    made.db.execute("BEGIN")
    made.db.executemany("INSERT INTO judgements (annotator, task, criterion, choice, made) VALUES (?, ?, ?, ?, ?)", told)
    made.db.execute("COMMIT")
    made.close()
    return folder / "human"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--items", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("no Chromium on this machine: apt-get install chromium")
    with tempfile.TemporaryDirectory() as place, sync_playwright() as driver:
        folder = Path(place)
        if given.run is None:
            judged_demo(folder / "demo")
        page_file = report_page(folder, given.run or folder / "demo", given.items)
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page, bare = browser.new_page(), browser.new_page()
        bare.goto(BARE)
        bench = Bench(page, bare)
        page.goto(page_file.as_uri())
        page.wait_for_timeout(1000)  # nobody types before seeing the page
        browse(bench, "", given.rounds, ("#filter", ["all three pairs", "all items"]))
        if page.locator("#judged-list button").count():
            browse(bench, "judged-", given.rounds, ("#judged-outcome", ["lose", "any outcome"]))
        command = [kt_command(), "annotate", "--out", str(study(folder, given.items)), "--annotator", "Bo"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
            assert server.stdout is not None
            try:
                url = next(word for line in server.stdout for word in line.split() if word.startswith("http://"))
                page.goto(url)
                page.wait_for_selector("#work:not([hidden])")
                judge(bench, given.rounds)
            finally:
                server.terminate()
        size = page_file.stat().st_size
    bare_median = statistics.median(bench.found["a bare button"])
    rows = {
        name: {
            "median_ms": round(statistics.median(taken), 1),
            "first_ms": round(taken[0], 1),
            "worst_ms": round(max(taken), 1),
            "median / bare": round(statistics.median(taken) / bare_median, 2),
            "reached": max(taken) < LIMIT_MS,
        }
        for name, taken in bench.found.items()
    }
    report("pages", {"items": given.items, "page_mb": round(size / 1e6, 1), "limit_ms": LIMIT_MS, "interactions": rows})
    print(f"{sum(not row['reached'] for row in rows.values())} of {len(rows)} over {LIMIT_MS} ms", file=sys.stderr)


if __name__ == "__main__":
    main()
