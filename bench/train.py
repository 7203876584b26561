"""The KC stage's speed and memory: kt beside plain TRL and LLaMA-Factory, each in a process of its own, interleaved rounds.

    python bench/train.py [--items 20] [--rounds 3] [--settings bfloat16 bfloat16+checkpointing float32]

Same random Llama of some 20M weights, LoRA (r 8, all linear layers), pairs, order, batch, learning rate, and one thread.
Pairs are three a question, made by rule from real Dolly and MedQuAD answers. The peers take the micro-batch that is
fastest for them, found beforehand. `KT_LLAMAFACTORY_PYTHON` names a Python that imports llamafactory (bench/README.md);
without it that row is left out. Where memory is compared, it is the process's peak, imports and weights included.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from measured import interleaved, median_ratio, report, run, target
from train_data import make_adapter, make_model, make_pairs

DATA = Path(__file__).parents[2] / "shared" / "data"
SETS = ("dolly_train", "medquad_valid")
STEP_PAIRS = 15  # five items: KnowTuning's batch is 16 pairs, but whole items keep everyone's steps the same
MICRO = (1, 3, 5)
ONE_ITEM = 3  # kt's micro-batch: more items at once are no faster to speak of, and take more memory
LONGEST = 1024


def prepare(folder: Path, items: int) -> dict[str, dict]:
    """Make model, adapter, and for every data set the files that each contender reads; give its job."""
    rows = [row for name in SETS for row in json.loads((DATA / f"{name}.json").read_text())]
    make_model(folder / "model", [row[key] for row in rows for key in ("instruction", "output")])
    make_adapter(folder / "model", folder / "adapter")
    common = {"model": str(folder / "model"), "adapter": str(folder / "adapter")}
    return {name: {**common, "learning_rate": 1e-4, **write_pairs(folder, name, items)} for name in SETS}


def write_pairs(folder: Path, name: str, items: int) -> dict:
    from transformers import AutoTokenizer

    from kt.preference_data import pack_pairs
    from kt.records import write_jsonl
    from kt.template import render_prompt

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    made = make_pairs(DATA / f"{name}.json", 4 * items)
    triples = [made[at : at + 3] for at in range(0, len(made), 3)]
    fitting = [three for three in triples if longest(tokenizer, three, render_prompt) <= LONGEST][:items]
    pairs = [pair for three in fitting for pair in three]
    rendered = [
        {**{key: pair[key] for key in ("chosen", "rejected")}, "prompt": render_prompt(pair["prompt"])} for pair in pairs
    ]
    own = folder / name
    (own / "llamafactory").mkdir(parents=True)
    write_jsonl(own / "pairs.jsonl", pairs)
    write_jsonl(own / "rendered.jsonl", rendered)
    (own / "llamafactory" / "pairs.json").write_text(json.dumps(rendered))
    columns = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}
    info = {"pairs": {"file_name": "pairs.json", "ranking": True, "columns": columns}}
    (own / "llamafactory" / "dataset_info.json").write_text(json.dumps(info))
    files = {"pairs": own / "pairs.jsonl", "rendered": own / "rendered.jsonl", "llamafactory_data": own / "llamafactory"}
    return {**{key: str(path) for key, path in files.items()}, "tokens": count_tokens(pack_pairs(tokenizer, pairs)[0])}


def longest(tokenizer, pairs: list[dict], render) -> int:
    """Count the tokens of the longest prompt and answer."""
    prompt = len(tokenizer(render(pairs[0]["prompt"]))["input_ids"])
    texts = [pairs[0]["chosen"], *(pair["rejected"] for pair in pairs)]
    return prompt + 1 + max(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)


def count_tokens(items: list) -> dict:
    """Do the arithmetic of sharing: every pair its prompt twice and its chosen answer, against each once an item."""
    plain = packed = 0
    for item in items:
        prompt, (chosen, *rejected) = item.row.sources[0] + 1, item.lengths
        plain += sum(2 * prompt + chosen + one for one in rejected)
        packed += prompt + chosen + sum(rejected)
    return {"plain": plain, "packed": packed, "ratio": round(plain / packed, 3), "pairs": sum(len(i.ids) for i in items)}


def contender(name: str, job: dict, folder: Path) -> dict:
    """Run one contender to its end in its own process; its last line is its result."""
    path = folder / "job.json"
    path.write_text(json.dumps({**job, "out": tempfile.mkdtemp(dir=folder)}))
    python = os.environ["KT_LLAMAFACTORY_PYTHON"] if name == "llamafactory" else sys.executable
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    out = run([python, str(Path(__file__).with_name("train_contender.py")), name, str(path)], **quiet)
    return json.loads(next(line for line in reversed(out.splitlines()) if line.startswith("RESULT "))[7:])


def best_micro_batches(names: list[str], job: dict, folder: Path) -> dict[str, int]:
    """Find the micro-batch, in pairs, with which each peer is fastest on a step."""
    found = {}
    for name in names:
        seconds = {micro: contender(name, {**job, "steps": 2, "micro": micro}, folder)["cpu_seconds"] for micro in MICRO}
        print(f"  {name}: CPU seconds of a step by micro-batch: {seconds}", file=sys.stderr)
        found[name] = min(seconds, key=seconds.get)
    return found


def race(names: list[str], jobs: dict[str, dict], rounds: int, folder: Path) -> dict:
    """Measure every contender on one data set, turn by turn; `jobs` has each one's own."""
    kept: dict[str, list[dict]] = {name: [] for name in names}

    def measure(name: str) -> float:
        kept[name].append(contender(name, jobs[name], folder))
        return rate(kept[name][-1], "cpu_seconds")

    def rate(found: dict, clock: str) -> float:
        return STEP_PAIRS * (jobs["kt"]["steps"] - 1) / found[clock]  # the first step is not timed

    busy = interleaved({name: lambda name=name: measure(name) for name in names}, rounds)
    wall = {name: [rate(one, "seconds") for one in kept[name]] for name in names}
    pairs, tokens = jobs["kt"]["tokens"]["pairs"], jobs["kt"]["tokens"]["plain"]
    result = {}
    for name in names:
        result[name] = {
            "pairs_per_second": round(statistics.median(wall[name]), 3),
            "pairs_per_cpu_second": round(statistics.median(busy[name]), 3),
            # The tokens of the pairs as they are, shared or not: the same for everyone.
            "tokens_per_second": round(statistics.median(wall[name]) * tokens / pairs, 1),
            "peak_mb": round(max(one["peak_mb"] for one in kept[name])),
            "losses": kept[name][-1]["losses"],
        }
    peers = [name for name in names if name != "kt"]
    ratios = {name: median_ratio(busy, "kt", name) for name in peers}
    ahead = min(ratios, key=ratios.get)
    return {
        **result,
        # One thread, no waiting: CPU time is the time of a quiet machine.
        "by_cpu_time_of_the_better_peer": {"peer": ahead, **target(ratios[ahead], 2.0)},
        "by_wall_time_of_each": {name: round(median_ratio(wall, "kt", name), 3) for name in peers},
        "memory_of_trl": target(result["kt"]["peak_mb"] / result["trl"]["peak_mb"], 1.0, at_most=True),
    }


def fifty_steps(names: list[str], job: dict, folder: Path) -> dict:
    """Train 50 steps of one item in float32: the losses of all must be one curve."""
    own = {**job, "dtype": "float32", "checkpointing": False, "batch_pairs": 3, "steps": 50}
    losses = {name: contender(name, {**own, "micro": ONE_ITEM if name == "kt" else 1}, folder)["losses"] for name in names}
    apart = {name: max(abs(a - b) for a, b in zip(losses["kt"], losses[name], strict=True)) for name in names if name != "kt"}
    return {
        "first": losses["kt"][0],
        "last": losses["kt"][-1],
        **{f"kt_{k}": target(v, 1e-3, at_most=True) for k, v in apart.items()},
    }


def measure(options: argparse.Namespace, folder: Path) -> dict:
    names = ["kt", "trl"] + (["llamafactory"] if os.environ.get("KT_LLAMAFACTORY_PYTHON") else [])
    if "llamafactory" not in names:
        print("KT_LLAMAFACTORY_PYTHON names no Python: LLaMA-Factory is left out", file=sys.stderr)
    steps = options.items * 3 // STEP_PAIRS
    jobs = prepare(folder, max(options.items, 50))
    plain = {"steps": steps, "batch_pairs": STEP_PAIRS, "checkpointing": False, "dtype": "bfloat16"}
    micro = best_micro_batches(names[1:], {**jobs[SETS[0]], **plain}, folder)
    micro["kt"] = ONE_ITEM
    found: dict = {"steps": steps, "pairs_a_step": STEP_PAIRS, "micro_batch_pairs": micro}
    found["versions"] = {name: version(name) for name in ("torch", "transformers", "trl", "peft")}
    for setting in options.settings:
        dtype, _, checkpointing = setting.partition("+")
        for name, job in jobs.items():
            print(f"{setting}, {name}", file=sys.stderr)
            own = {**job, **plain, "dtype": dtype, "checkpointing": bool(checkpointing)}
            raced = race(names, {one: {**own, "micro": micro[one]} for one in names}, options.rounds, folder)
            found.setdefault(setting, {})[name] = {"tokens": job["tokens"], **raced}
            report(options.name, found)
    if options.losses:
        own = {**jobs[SETS[0]], "dtype": "float32"}
        found["gradients_float32"] = contender("gradients", own, folder)
        found["losses_of_50_steps_float32"] = fifty_steps(names, own, folder)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--settings", nargs="*", default=["bfloat16", "bfloat16+checkpointing", "float32"])
    parser.add_argument("--losses", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--name", default="train")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report(options.name, measure(options, Path(folder)))


if __name__ == "__main__":
    main()
