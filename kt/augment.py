"""Stage I, fine-grained knowledge augmentation (paper 3.2): extract facts, choose the difficult, rewrite question, answer."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import Any

import orjson

from kt.pipeline import BadAnswer, Step
from kt.prompts import Prompt
from kt.records import Record
from kt.request import Completion, Request, chat, plain_params

_THINKING = re.compile(r"\A\s*<think>.*?</think>", re.S)


def asker(prompt: Prompt, seed: int) -> Callable[[Record], list[Request]]:
    """Return the function that turns a record into this prompt's one request."""
    params = params_of(prompt, seed)
    render, schema, name, digest = prompt.render, prompt.schema, prompt.name, prompt.hash
    return lambda record: [chat(render(record), params, schema=schema, prompt=name, prompt_hash=digest)]


def params_of(prompt: Prompt, seed: int) -> dict[str, Any]:
    """Return a prompt's sampling parameters, with the seed where it can matter: vLLM on a CPU dies of some seeds."""
    params = plain_params(prompt.params)
    return plain_params({"seed": seed, **params}) if params.get("temperature", 1) else params


def text_of(completion: Completion) -> str:
    """Return an answer's words, without what a reasoning model thought aloud; BadAnswer if nothing is left."""
    text = completion.text
    if text.lstrip().startswith("<think>"):
        text = _THINKING.sub("", text)
    text = text.strip()
    if not text or "\0" in text:
        raise BadAnswer("no text in the answer")
    return text


def facts_of(completion: Completion) -> list[str]:
    """Return the facts of a JSON answer {"facts": [...]}, stripped, none empty; BadAnswer otherwise."""
    try:
        found = orjson.loads(completion.text)
    except orjson.JSONDecodeError as error:
        raise BadAnswer("the answer is not JSON") from error
    facts = found.get("facts") if isinstance(found, dict) else None
    if not isinstance(facts, list) or not set(map(type, facts)) <= {str}:
        raise BadAnswer('the answer has no list of sentences under "facts"')
    facts = [" ".join(fact.split()) for fact in facts]
    if not facts or not all(facts) or "\0" in "".join(facts):
        raise BadAnswer("the answer holds no facts, or an empty one")
    return facts


def extract(prompt: Prompt, seed: int, attempts: int) -> Step:
    """Item → {"id", "question", "answer", "facts"}: the ordered atomic facts K of the answer."""

    def parse(record: Record, completions: Sequence[Completion]) -> list[Record]:
        return [{**record, "facts": facts_of(completions[0])}]

    return Step("extract", asker(prompt, seed), parse, step_config(prompt, seed, attempts), attempts)


def choose(mode: str, share: float, seed: int, pick: Callable[[Sequence[float], float], list[int]]) -> Step:
    """Facts (with "perplexities" under mode ppl) → {"id", "question", "facts": the difficult ones, "kept": their places}.

    Mode ppl keeps the share with the highest perplexity, rounded up; random keeps as many at random; all keeps all.
    """

    def parse(record: Record, _: Sequence[Completion]) -> list[Record]:
        facts = record["facts"]
        kept = _kept(mode, record, share, seed, pick)
        return [{"id": record["id"], "question": record["question"], "facts": [facts[i] for i in kept], "kept": kept}]

    return Step("choose", lambda _: (), parse, {"difficulty": mode, "share": share, "seed": seed})


def _kept(mode: str, record: Record, share: float, seed: int, pick: Callable[[Sequence[float], float], list[int]]) -> list[int]:
    count = len(record["facts"])
    if mode == "all":
        return list(range(count))
    if mode == "random":
        random_of = random.Random(f"{seed}:choose:{record['id']}").random
        return pick([random_of() for _ in range(count)], share)
    return pick(record["perplexities"], share)


def rewrite_question(prompt: Prompt, seed: int, attempts: int) -> Step:
    """Difficult facts → {"id", "question": the fine-grained question, "facts"}."""

    def parse(record: Record, completions: Sequence[Completion]) -> list[Record]:
        return [{"id": record["id"], "question": text_of(completions[0]), "facts": record["facts"]}]

    return Step("rewrite-question", asker(prompt, seed), parse, step_config(prompt, seed, attempts), attempts)


def rewrite_answer(prompt: Prompt, seed: int, attempts: int) -> Step:
    """Fine-grained question and its facts → {"id", "question", "answer"}: the pair (q*, a*)."""

    def parse(record: Record, completions: Sequence[Completion]) -> list[Record]:
        return [{"id": record["id"], "question": record["question"], "answer": text_of(completions[0])}]

    return Step("rewrite-answer", asker(prompt, seed), parse, step_config(prompt, seed, attempts), attempts)


def step_config(prompt: Prompt, seed: int, attempts: int) -> dict[str, Any]:
    """Return what a step's manifest records of its prompt."""
    return {"prompt": prompt.name, "prompt_hash": prompt.hash, "params": params_of(prompt, seed), "attempts": attempts}
