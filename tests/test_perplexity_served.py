"""Perplexity through a real vLLM server's `prompt_logprobs` equals the local path."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from scoring_models import save_adapter, save_model

from kt.models import load
from kt.perplexity import perplexity, score_contexts, score_from_prompt_logprobs
from kt.template import render_prompt

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("vllm"), reason="vLLM is not installed")
START_S = 300
QUESTIONS = [
    (render_prompt("What is a lichen?"), ["A lichen is a fungus.", "A lichen grows on stone.", "It is 漢 🙂."]),
    ("ends in a space: ", ["It runs on.", "1984"]),
    ("runs into the ne", ["xt word", "st of birds"]),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    # vLLM on a CPU has no kernel for heads under 32.
    return save_model(tmp_path_factory.mktemp("models") / "llama", hidden_size=128, head_dim=32, initializer_range=0.1)


@pytest.fixture(scope="module")
def adapter(model, tmp_path_factory):
    return save_adapter(tmp_path_factory.mktemp("adapters") / "lora", model)


@pytest.fixture(scope="module")
def server(model, adapter, tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("vllm") / "log"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", "tiny", "--dtype", "float32", "--max-model-len", "128", "--enforce-eager"]
    command += ["--enable-lora", "--lora-modules", f"adapted={adapter}", "--host", "127.0.0.1", "--port", str(port)]
    offline = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=os.environ | offline, stdout=file, stderr=file)
    try:
        wait(process, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1/completions"
    finally:
        process.terminate()
        process.wait(60)


def wait(process, url, log):
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            return urllib.request.urlopen(url, timeout=5).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise AssertionError(f"vLLM did not start:\n{log.read_text()[-4000:]}")


def ask(server, prompt, name="tiny", **params):
    body = {"model": name, "prompt": prompt, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0, **params}
    request = urllib.request.Request(server, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


@pytest.mark.parametrize("params", [{}, {"prompt_logprobs": 3, "return_token_ids": True}])
@pytest.mark.parametrize("adapted", [False, True])
def test_a_served_model_scores_as_a_local_one(server, model, adapter, adapted, params):
    local = load(model, adapter if adapted else None, device="cpu")
    name = "adapted" if adapted else "tiny"
    for (context, facts), scores in zip(QUESTIONS, score_contexts(local, QUESTIONS), strict=True):
        prefix = ask(server, context, name, **params)
        for fact, expected in zip(facts, scores, strict=True):
            found = score_from_prompt_logprobs(prefix, ask(server, context + fact, name, **params))
            assert found.tokens == expected.tokens
            assert perplexity(found) == pytest.approx(perplexity(expected), rel=1e-4)


def test_without_a_context_it_equals_too(server, model):
    ((expected,),) = score_contexts(load(model, device="cpu"), [("", ["A lichen is a fungus."])])
    found = score_from_prompt_logprobs(None, ask(server, "A lichen is a fungus."))
    assert found.tokens == expected.tokens
    assert perplexity(found) == pytest.approx(perplexity(expected), rel=1e-4)


def test_one_entry_a_token_when_none_but_the_prompts_own_are_asked_for(server):
    first, *rest = ask(server, "A lichen is a fungus.")["choices"][0]["prompt_logprobs"]
    assert first is None
    assert {len(entry) for entry in rest} == {1}
