"""Everything that can change an answer changes its key, and nothing else does."""

from __future__ import annotations

import math

import pytest

from kt.errors import InputError
from kt.request import Request, canonical, chat, key_of, plain_params

MESSAGES = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
PARAMS = plain_params({"temperature": 0.0, "max_tokens": 10})
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}}}


def key(request: Request, model: str = "m", revision: str = "r") -> str:
    return key_of(canonical(request, model, revision))


BASE = chat(MESSAGES, PARAMS, schema=SCHEMA)


def with_params(**more: object) -> Request:
    return chat(MESSAGES, plain_params({"temperature": 0.0, "max_tokens": 10, **more}), schema=SCHEMA)


CHANGES = {
    "model": key(BASE, model="n"),
    "revision": key(BASE, revision="s"),
    "system prompt": key(chat([{"role": "system", "content": "t"}, MESSAGES[1]], PARAMS, schema=SCHEMA)),
    "user text": key(chat([MESSAGES[0], {"role": "user", "content": "u "}], PARAMS, schema=SCHEMA)),
    "role": key(chat([{"role": "user", "content": "s"}, MESSAGES[1]], PARAMS, schema=SCHEMA)),
    "order of messages": key(chat(MESSAGES[::-1], PARAMS, schema=SCHEMA)),
    "a further turn": key(chat([*MESSAGES, {"role": "assistant", "content": ""}], PARAMS, schema=SCHEMA)),
    "name of a speaker": key(chat([MESSAGES[0], {**MESSAGES[1], "name": "x"}], PARAMS, schema=SCHEMA)),
    "temperature": key(with_params(temperature=0.1)),
    "max_tokens": key(with_params(max_tokens=11)),
    "seed": key(with_params(seed=1)),
    "min_p": key(with_params(min_p=0.1)),
    "top_k": key(with_params(top_k=5)),
    "stop": key(with_params(stop=["x"])),
    "logit_bias": key(with_params(logit_bias={"5": 1})),
    "unknown extra field": key(with_params(some_field_of_2027={"x": [1]})),
    "chat_template_kwargs": key(with_params(chat_template_kwargs={"enable_thinking": False})),
    "tools": key(with_params(tools=[{"type": "function"}])),
    "no schema": key(chat(MESSAGES, PARAMS)),
    "order of schema properties": key(
        chat(MESSAGES, PARAMS, schema={**SCHEMA, "properties": dict(reversed(SCHEMA["properties"].items()))})  # type: ignore[union-attr]
    ),
    "sample": key(Request(BASE.kind, BASE.body, BASE.schema, 1)),
    "kind": key(Request("completions", {"prompt": "u", **PARAMS}, BASE.schema)),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_can_change_an_answer_changes_the_key(what: str) -> None:
    assert CHANGES[what] != key(BASE)


def test_all_those_keys_differ_from_each_other() -> None:
    assert len(set(CHANGES.values())) == len(CHANGES)


SAME = {
    "0 for 0.0": chat(MESSAGES, plain_params({"temperature": 0, "max_tokens": 10.0}), schema=SCHEMA),
    "order of parameters": chat(MESSAGES, dict(reversed(PARAMS.items())), schema=SCHEMA),
    "order of a message's fields": chat([dict(reversed(m.items())) for m in MESSAGES], PARAMS, schema=SCHEMA),
    "a parameter that is null": with_params(top_p=None),
    "the prompt file's name": chat(MESSAGES, PARAMS, schema=SCHEMA, prompt="x", prompt_hash="y"),
    "stream": with_params(stream=True),
    "user": with_params(user="me"),
    "metadata": with_params(metadata={"run": "1"}),
    "timeout": with_params(timeout=3),
}


@pytest.mark.parametrize("what", SAME)
def test_nothing_else_does(what: str) -> None:
    assert key(SAME[what]) == key(BASE)


def test_another_try_is_another_sample_at_a_temperature() -> None:
    again = BASE.again(2, stride=3)
    assert BASE.again(0, 3) is BASE
    assert again.sample == 6
    assert again.body["temperature"] == 0.7
    assert again.body["seed"] == 2
    assert key(again) != key(BASE.again(1, 3))
    assert with_params(temperature=1.0).again(1, 1).body["temperature"] == 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_refused(value: float) -> None:
    with pytest.raises(InputError, match="temperature"):
        plain_params({"temperature": value})


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(InputError, match="not JSON text"):
        key(chat([{"role": "user", "content": "\ud800"}], PARAMS))
