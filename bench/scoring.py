"""Facts scored a second: kt against lm-eval's `loglikelihood`, same model, facts, CPU and threads, interleaved rounds.

    python bench/scoring.py [../shared/data/dolly_train.json] [--items 200] [--rounds 3] [--threads 1]

Facts are the sentences of the answers; the model is a random Llama of some 20M weights with a tokenizer trained on the
file. lm-eval runs at the best of several batch sizes, found beforehand on a part of the same facts; its `auto` would
take the largest that memory holds, up to 64, which on a CPU is the slowest.
"""

import argparse
import json
import logging
import os
import platform
import random
import re
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "scoring.json"
DATA = Path(__file__).parents[2] / "shared" / "data" / "dolly_train.json"
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
VOCABULARY = 12_000


def read_items(path: Path, items: int) -> list[tuple[str, list[str]]]:
    """Give (question, sentences of the answer) for the first items that have two sentences or more."""
    rows = json.loads(path.read_text()) if path.is_file() else made_up_rows(items)
    split = [(row["instruction"], re.split(r"(?<=[.!?])\s+", row["output"].strip())) for row in rows]
    return [(question, facts) for question, facts in split if len(facts) >= 2][:items]


def made_up_rows(count: int) -> list[dict[str, str]]:
    """Stand in for a missing data file, with sentences about as long as Dolly's."""
    print("no data file: made-up text instead", file=sys.stderr)
    rng = random.Random(0)
    words = ["".join(rng.choices("aeioulnrst", k=rng.randint(2, 9))) for _ in range(5000)]
    sentence = lambda: " ".join(rng.choices(words, k=rng.randint(8, 28))).capitalize() + "."  # noqa: E731
    return [{"instruction": sentence(), "output": " ".join(sentence() for _ in range(rng.randint(2, 7)))} for _ in range(count)]


def make_model(folder: str, texts: list[str]) -> None:
    """Save a random Llama of some 20M weights and a byte-level BPE trained on the texts."""
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=True,
        initializer_range=0.05,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)


class LmEval:
    """lm-eval's HFLM around the very model and tokenizer that kt scores with."""

    def __init__(self, local, batch_size):
        from lm_eval.models.huggingface import HFLM

        self.model = HFLM(pretrained=local.model, tokenizer=local.tokenizer, batch_size=batch_size)

    def score(self, questions):
        from lm_eval.api.instance import Instance

        pairs = [(context, fact) for context, facts in questions for fact in facts]
        asked = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
        return [logprob for logprob, _ in self.model.loglikelihood(asked, disable_tqdm=True)]


def score_with_kt(local, questions):
    from kt.perplexity import score_contexts

    return [score.logprob_sum for scores in score_contexts(local, questions) for score in scores]


def timed(work, questions):
    started = time.perf_counter()
    scores = work(questions)
    return time.perf_counter() - started, scores


def count_tokens(local, questions) -> dict[str, int]:
    """Count what each way feeds to the model, padding left out, and what it runs the head on."""
    from kt.packing import encode_facts, pack

    encoded = [encode_facts(local.tokenizer, context, facts) for context, facts in questions]
    every = [fact for facts in encoded for fact in facts]
    return {
        "one_by_one": sum(len(fact.ids) - 1 for fact in every),
        "shared_prefix": sum(len(row.ids) for facts in encoded for row in pack(facts, range(len(facts)))),
        "scored": sum(fact.tokens for fact in every),
    }


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.is_file() else []
    return names[0] if names else platform.processor()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", type=Path, default=DATA)
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


def prepare(options: argparse.Namespace):
    """Load the model, and give it with (context, facts) of every question."""
    from kt.models import load
    from kt.template import render_prompt

    items = read_items(options.data, options.items)
    with tempfile.TemporaryDirectory() as folder:
        make_model(folder, [text for question, facts in items for text in (question, *facts)])
        local = load(folder, device="cpu", threads=options.threads)
    # The line break that ends the prompt goes to the facts' side: lm-eval would move it there by itself.
    return local, [(render_prompt(question).rstrip(), ["\n" + fact for fact in facts]) for question, facts in items]


def sweep(local, questions) -> dict[int, float]:
    """Seconds that lm-eval takes for some 40 of the questions, by batch size."""
    part = questions[:: max(1, len(questions) // 40)]
    timed(LmEval(local, 1).score, part[:2])
    return {size: timed(LmEval(local, size).score, part)[0] for size in BATCH_SIZES}


def race(ways, questions, rounds: int) -> tuple[dict[str, list[float]], float]:
    """Let the ways take turns; give the seconds of every round and the largest relative difference of the numbers."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    scores: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, work in ways.items():
            took, scores[name] = timed(work, questions)
            seconds[name].append(took)
    worst = max(abs(a - b) / abs(b) for a, b in zip(*scores.values(), strict=True))
    if worst > 1e-4:
        raise SystemExit(f"the numbers differ by {worst:.1e}: nothing is measured")
    return seconds, worst


def measure(options: argparse.Namespace) -> dict:
    from kt.perplexity import scoring_path

    local, questions = prepare(options)
    swept = sweep(local, questions)
    best = min(swept, key=swept.get)
    ways = {"kt": lambda some: score_with_kt(local, some), "lm-eval": LmEval(local, best).score}
    seconds, worst = race(ways, questions, options.rounds)
    facts = sum(len(some) for _, some in questions)
    rates = {name: facts / statistics.median(took) for name, took in seconds.items()}
    tokens = count_tokens(local, questions)
    return {
        "facts": facts,
        "questions": len(questions),
        "weights": sum(parameter.numel() for parameter in local.model.parameters()),
        "vocabulary": VOCABULARY,
        "threads": options.threads,
        "facts_per_second": {name: round(rate, 2) for name, rate in rates.items()},
        "ratio": round(rates["kt"] / rates["lm-eval"], 3),
        "seconds": {name: [round(second, 3) for second in took] for name, took in seconds.items()},
        "lm_eval_batch_size": best,
        "lm_eval_sweep_seconds": {str(size): round(second, 3) for size, second in swept.items()},
        "largest_relative_difference": worst,
        "tokens": tokens | {"ratio": round(tokens["one_by_one"] / tokens["shared_prefix"], 3)},
        "scoring_path": scoring_path(local),
        "cpu": cpu_name(),
        "versions": {name: version(name) for name in ("torch", "transformers", "lm-eval")},
    }


def summary(result: dict) -> str:
    rates, tokens = result["facts_per_second"], result["tokens"]
    return (
        f"{result['facts']} facts of {result['questions']} questions, {result['weights'] / 1e6:.1f}M weights, "
        f"{result['threads']} thread(s)\n"
        f"lm-eval, seconds for a part by batch size: {result['lm_eval_sweep_seconds']}\n"
        f"facts/s: kt {rates['kt']:.1f}, lm-eval {rates['lm-eval']:.1f} at batch size {result['lm_eval_batch_size']}: "
        f"{result['ratio']:.2f}x; numbers equal to {result['largest_relative_difference']:.1e}\n"
        f"tokens fed: {tokens['one_by_one']} one by one, {tokens['shared_prefix']} with shared prefixes "
        f"({tokens['ratio']:.2f}x fewer); places the head is run on: {tokens['one_by_one']} and {tokens['scored']}"
    )


def main() -> None:
    options = arguments()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": str(options.threads)}
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    result = measure(options)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(summary(result))


if __name__ == "__main__":
    main()
