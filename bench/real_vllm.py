"""A real vLLM server, asked by kt and by vLLM's own benchmark client: the same prompts, tokens and concurrency.

    python bench/real_vllm.py [--prompts 192] [--rounds 3]

Both send chat requests for a fixed number of tokens (ignore_eos), 32 at a time. kt's completions are committed to a fresh cache
each round; vLLM's client keeps nothing. The server's own prefix cache is off, or the second to ask would find the work done.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measured import interleaved, median_ratio, medians, report, target

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

CONCURRENCY = 32
TOKENS = 48
CLIENT = "from vllm.benchmarks.serve import add_cli_args, main; import argparse; p = argparse.ArgumentParser();"
CLIENT += " add_cli_args(p); main(p.parse_args())"


def prompts(count: int) -> list[str]:
    import tiny_models

    lines = tiny_models.sentences(count * 6, seed=3)
    return [" ".join(lines[6 * n : 6 * n + 6]) for n in range(count)]


def kt_rate(server, asked: list[str]) -> float:
    """Completions a second through kt's client."""
    from kt.cache import Cache
    from kt.client import Client
    from kt.endpoint import Endpoint
    from kt.pipeline import Step, fill
    from kt.request import chat, plain_params

    params = plain_params({"temperature": 0, "max_tokens": TOKENS, "ignore_eos": True})
    step = Step("ask", lambda one: [chat([{"role": "user", "content": one["text"]}], params)], lambda _record, _found: [])
    step = Step(step.name, step.requests, step.parse, attempts=1)
    with tempfile.TemporaryDirectory() as folder, Cache(Path(folder) / "c.sqlite") as cache:
        endpoint = Endpoint("vllm", [server.base_url], server.model, api_key=server.api_key, weights_known=True)
        with Client(cache, [endpoint], CONCURRENCY) as client:
            started = time.perf_counter()
            client.run(fill(step, [{"id": n, "text": text} for n, text in enumerate(asked)], client, lambda: None))
            rate = len(asked) / (time.perf_counter() - started)
            if client.counters.completion_tokens != TOKENS * len(asked):
                raise SystemExit(f"{client.counters.completion_tokens} tokens, not {TOKENS} a prompt")
    return rate


def peer_rate(server, model: Path, data: Path, folder: Path, count: int) -> float:
    """Requests a second as `vllm bench serve` reports them."""
    base, _, _ = server.base_url.rpartition("/v1")
    command = [
        sys.executable,
        "-c",
        CLIENT,
        "--backend",
        "openai-chat",
        "--base-url",
        base,
        "--endpoint",
        "/v1/chat/completions",
    ]
    command += ["--model", server.model, "--tokenizer", str(model), "--dataset-name", "custom", "--dataset-path", str(data)]
    command += ["--custom-output-len", str(TOKENS), "--num-prompts", str(count), "--max-concurrency", str(CONCURRENCY)]
    command += ["--ignore-eos", "--temperature", "0", "--header", f"Authorization=Bearer {server.api_key}", "--disable-tqdm"]
    command += ["--save-result", "--result-dir", str(folder), "--result-filename", "peer.json", "--skip-chat-template"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"vLLM's benchmark client failed:\n{done.stderr[-3000:]}")
    said = json.loads((folder / "peer.json").read_text())
    if said["completed"] != count or said["total_output_tokens"] < TOKENS * count * 0.95:
        raise SystemExit(f"vLLM's client completed {said['completed']} with {said['total_output_tokens']} tokens")
    return said["request_throughput"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    import tiny_models

    from kt.serving import serve

    asked = prompts(args.prompts)
    random.Random(0).shuffle(asked)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = tiny_models.make_llama(folder / "tiny", hidden=256, layers=6)
        data = folder / "prompts.jsonl"
        data.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in asked))
        extra = ["--no-enable-prefix-caching"]
        with serve("vllm", model, max_model_len=1024, extra_args=extra, log_path=folder / "log") as server:
            kt_rate(server, asked[:CONCURRENCY])
            ways = {
                "kt": lambda: kt_rate(server, asked),
                "vLLM's benchmark client": lambda: peer_rate(server, model, data, folder, args.prompts),
            }
            found = interleaved(ways, args.rounds)
    ratio = median_ratio(found, "kt", "vLLM's benchmark client")
    result = {"completions a second": {k: round(v, 2) for k, v in medians(found).items()}, "rounds": args.rounds}
    about = {"prompts": args.prompts, "tokens": TOKENS, "concurrency": CONCURRENCY, "model": "random Llama, 256 x 6"}
    report("real_vllm", {**result, **about, "kt / vLLM's benchmark client": target(ratio, 0.95)})


if __name__ == "__main__":
    main()
