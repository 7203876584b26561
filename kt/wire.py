"""A request as each dialect wants it on the wire, and what its reply says: pure functions of bytes and dicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import orjson

from kt.errors import Refused
from kt.request import Request

Dialect = Literal["vllm", "llama-cpp", "openai"]


class Answer(NamedTuple):
    """What a backend said: the body as received and what matters in it. `status` is "ok" until judged otherwise."""

    response: str
    text: str
    status: str
    finish_reason: str
    answered_by: str
    prompt_tokens: int
    completion_tokens: int
    latency: float


class Transient(Exception):
    """The server failed at this call: worth another try after a pause."""


def wire_body(request: Request, model: str, dialect: Dialect) -> dict[str, Any]:
    """Return the JSON body as this dialect wants it: `json_schema`, or llama.cpp's `json_object` with a schema."""
    body = {"model": model, **request.body}
    if request.schema is not None:
        if dialect == "llama-cpp":
            body["response_format"] = {"type": "json_object", "schema": request.schema}
        else:
            named = {"name": (request.prompt or "answer").replace("-", "_"), "schema": request.schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
    return body


def read_answer(body: bytes, kind: str, content_type: str, latency: float) -> Answer:
    """Read the four things needed of a 200 reply; a reply that is no completion is a failure worth another try."""
    try:
        reply = orjson.loads(body)
        choice = reply["choices"][0]
        content = _content(choice, kind)
        refusal = choice["message"].get("refusal") if kind == "chat" else None
        usage = reply.get("usage") or {}
        finish = choice.get("finish_reason") or ""
        text = content or ""
        return Answer(
            body.decode(),
            text,
            _status(text, finish, refusal, kind),
            finish,
            reply.get("model") or "",
            usage.get("prompt_tokens") or 0,
            usage.get("completion_tokens") or 0,
            latency,
        )
    except (orjson.JSONDecodeError, UnicodeDecodeError, LookupError, TypeError, AttributeError) as error:
        start = body[:60].decode("utf-8", "replace").strip()
        advice = "is --base-url an OpenAI-compatible server's, ending in /v1?"
        raise Transient(f"answered {content_type or 'something'} that is no completion ({start!r}); {advice}") from error


def _prompt_logprobs(choice: Mapping[str, Any]) -> str:
    """Return the prompt's log-probabilities as JSON: they are what a request of kind `completions` is for."""
    if not choice.get("prompt_logprobs"):
        raise Refused("the server gives no prompt_logprobs, which only vLLM does: give --scorer PATH, or --difficulty all")
    return orjson.dumps(choice["prompt_logprobs"]).decode()


def _content(choice: Mapping[str, Any], kind: str) -> Any:
    """Return what was asked for by a request of this kind."""
    if kind == "chat":
        return choice["message"].get("content")
    return choice["text"] if kind == "generate" else _prompt_logprobs(choice)


def _status(text: str, finish: str, refusal: Any, kind: str) -> str:
    if refusal or finish == "content_filter":
        return "refused"
    if kind != "chat":  # asked for log-probabilities, or for whatever the model says: nothing, or too much, is its answer
        return "ok"
    if not text.strip():
        return "empty"
    return "truncated" if finish == "length" else "ok"


def message_of(body: bytes, content_type: str) -> str:
    """Find the sentence in an error body."""
    try:
        found: Any = orjson.loads(body)
        for name in ("error", "message", "detail"):
            if isinstance(found, Mapping) and name in found:
                found = found[name]
        text = found if isinstance(found, str) else orjson.dumps(found).decode()
    except orjson.JSONDecodeError:
        text = f"{content_type}: {body[:80].decode('utf-8', 'replace').strip()!r}"
    return " ".join(text.split())[:300]
