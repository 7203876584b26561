"""What is asked of a model and what it answered, and the key under which the answer is kept."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import orjson

from kt.errors import InputError

Kind = Literal["chat", "completions", "generate", "loglikelihood"]

NEVER_CHANGES_AN_ANSWER = frozenset({"model", "stream", "stream_options", "user", "metadata", "store", "timeout"})
"""Body fields left out of the key: `model` has a place of its own there, the others change no word of an answer."""


class Request(NamedTuple):
    """One question to a model, as it would be sent, without saying to whom.

    `body` holds the messages (or prompt) and every sampling parameter, `schema` the JSON schema of the answer, `sample`
    tells apart requests that are alike on purpose (a retry, the third of n samples). `prompt` and `prompt_hash` name the
    prompt file for the record and are not in the key.
    """

    kind: Kind
    body: Mapping[str, Any]
    schema: Mapping[str, Any] | None = None
    sample: int = 0
    prompt: str = ""
    prompt_hash: str = ""

    def again(self, attempt: int, stride: int) -> Request:
        """Return the request for another try: the next sample number, drawn at a temperature that allows another answer."""
        if attempt == 0:
            return self
        body = dict(self.body)
        if self.kind != "loglikelihood":
            body["temperature"] = max(body.get("temperature", 0), 0.7)
            body["seed"] = body.get("seed", 0) + attempt
        return self._replace(body=body, sample=self.sample + attempt * stride)


class Completion(NamedTuple):
    """An answer as the cache keeps it; only one whose status is "ok" is ever served as an answer."""

    key: str
    text: str
    status: str  # ok | empty | truncated | refused | invalid | too-long
    model: str
    finish_reason: str
    answered_by: str
    prompt_tokens: int
    completion_tokens: int
    cost: float


def chat(
    messages: list[dict[str, Any]],
    params: Mapping[str, Any],
    *,
    schema: Mapping[str, Any] | None = None,
    prompt: str = "",
    prompt_hash: str = "",
) -> Request:
    """Make a chat request; `params` should come from `plain_params`, once per step."""
    return Request("chat", {"messages": messages, **params}, schema, 0, prompt, prompt_hash)


def plain_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters in one spelling: 0.0 as 0, no nulls, sorted; InputError for what is not JSON."""
    return {name: _number(name, value) for name, value in sorted(params.items()) if value is not None}


def _number(name: str, value: Any) -> Any:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InputError(f"parameter {name}: {value} is not a number that can be sent")
        return int(value) if value.is_integer() else value
    return value


def canonical(request: Request, model: str, revision: str) -> bytes:
    """Return the JSON that the key hashes: all that can change an answer, in one spelling.

    The order of body fields and of a message's fields does not matter and is sorted; deeper down (schema, tools) the
    order is kept, since engines constrain and render in that order.
    """
    sent = request.body
    body = {name: sent[name] for name in sorted(sent) if name not in NEVER_CHANGES_AN_ANSWER}
    if request.kind == "chat":
        body["messages"] = [_sorted(message) for message in sent["messages"]]
    known = {
        "body": body,
        "kind": request.kind,
        "model": model,
        "revision": revision,
        "sample": request.sample,
        "schema": request.schema,
    }
    try:
        return orjson.dumps(known)
    except TypeError as error:
        raise InputError(f"prompt {request.prompt or '(none)'}: the request is not JSON text: {error}") from error


def _sorted(message: Mapping[str, Any]) -> Mapping[str, Any]:
    if len(message) == 2 and "content" in message and "role" in message:  # nearly all: no need to sort
        return {"content": message["content"], "role": message["role"]}
    return {name: message[name] for name in sorted(message)}


def key_of(canonical_json: bytes) -> str:
    """Return the SHA-256 of a canonical request as hex."""
    return hashlib.sha256(canonical_json).hexdigest()
