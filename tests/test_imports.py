"""Imports point one way; the command line starts light; files are named for what they do."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "kt"

# In the order in which data flows: each module imports only what stands above it. `cli` and `demo` stand last.
ORDER = [
    "errors",
    "records",
    "items",
    "config",
    "prices",
    "prompts",
    "request",
    "cache_schema",
    "cache",
    "cache_admin",
    "cost",
    "wire",
    "resolver",
    "endpoint",
    "group_commit",
    "client",
    "offline",
    "serving",
    "supervise",
    "manifest",
    "pipeline",
    "intake",
    "augment",
    "compare",
    "intervals",
    "answers",
    "judge",
    "agreement",
    "evidence",
    "facts",
    "wordnet",
    "metrics",
    "annotate",
    "annotate_page",
    "template",
    "weights",
    "models",
    "packing",
    "decoding",
    "loglikelihood",
    "perplexity",
    "local_backend",
    "scoring",
    "backends",
    "evaluation_manifest",
    "evaluate",
    "generators",
    "generation",
    "side_by_side",
    "training_sets",
    "build",
    "baselines",
    "estimate",
    "evaluation_estimate",
    "progress",
    "gguf",
    "train_sections",
    "train_config",
    "experiment_settings",
    "export",
    "check",
    "doctor",
    "preference",
    "branch_attention",
    "preference_rows",
    "preference_data",
    "plan",
    "train_rows",
    "pair_batches",
    "train_kc",
    "train_display",
    "train_stages",
    "launch",
    "train",
    "train_rank",
    "experiment",
    "report_results",
    "method_table",
    "significance",
    "annotate_agreement",
    "report_people",
    "report_judged",
    "report_training",
    "report_charts",
    "report_data",
    "report",
]

# Over 300 lines for one reason each, said here.
LONG = {
    "client.py": "cache first, then backends: one path",
}


def modules() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if p.name not in ("__init__.py", "__main__.py"))


def imported(path: Path) -> set[str]:
    """The kt modules that a file names in an import, wherever it stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "kt":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("kt.")}
    return {name for name in found if not name.startswith("__")}


@pytest.mark.parametrize("path", [p for p in modules() if p.parent == PACKAGE], ids=lambda p: p.stem)
def test_imports_point_one_way(path: Path) -> None:
    assert path.stem in ORDER, f"{path.stem}: give it a place in ORDER"
    above = set(ORDER[: ORDER.index(path.stem)])
    assert imported(path) <= above, f"{path.stem} imports {imported(path) - above}, which stands below it"


def test_every_module_of_the_order_exists() -> None:
    assert {p.stem for p in modules() if p.parent == PACKAGE} == set(ORDER)


def test_only_the_command_line_knows_click() -> None:
    users = {p.relative_to(PACKAGE).parts[0] for p in modules() if "import click" in p.read_text()}
    assert users <= {"cli", "demo"}


@pytest.mark.parametrize(
    "heavy", ["torch", "transformers", "openai", "pandas", "aiohttp", "sqlite_utils", "pydantic", "rich", "nltk", "scipy"]
)
def test_the_command_line_starts_without(heavy: str) -> None:
    code = f"import sys, kt.cli; kt.cli._run(['--help']); sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_modules_are_short_and_well_named() -> None:
    long = {p.name for p in modules() if len(p.read_text().splitlines()) > 300}
    assert long <= set(LONG), "split it, or say its one reason in LONG"
    vague = {"utils", "util", "helpers", "common", "manager", "misc"}
    assert not vague & {p.stem for p in modules()}


def test_nothing_unsafe_is_loaded() -> None:
    unsafe = re.compile(r"import pickle|pickle\.load|trust_remote_code=True|yaml\.load\(|(?<![\w.])(eval|exec)\(|shell=True")
    assert unsafe.search("x = eval(y)")
    assert not unsafe.search("model.eval()")
    for path in modules():
        assert not unsafe.search(path.read_text()), path
