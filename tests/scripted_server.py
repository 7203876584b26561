"""An OpenAI-compatible server whose behaviour the tests choose: a stand-in for broken servers and for the paid API.

It answers the `compact` prompts by rule (sentences as facts, "Not: " before each to revise them), logs every request it
received and answered, and can be slow or broken in every way that a client must survive. Real engines are tested apart.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

KEY = "sk-test-7Jq0-this-key-must-never-be-seen"


def answer_to(body: dict[str, Any], judge: str = "longer") -> str:
    """Answer a compact prompt by rule."""
    task, _, rest = body["messages"][-1]["content"].partition("\n")
    lines = rest.split("\n")
    if task.startswith("compare "):
        return json.dumps({"verdict": compare(rest, judge)})
    if task.startswith("score "):
        return json.dumps({"score": min(10, len(" ".join(lines[1:]).split()))})
    if task == "check":  # the evidence's own words are correct; without evidence, whatever does not admit to be wrong
        evidence = " ".join(lines[1:-1])
        right = lines[-1] in evidence if evidence else "wrong" not in lines[-1]
        return json.dumps({"verdict": "correct" if right else "incorrect"})
    if task == "extract":
        facts = [s for s in re.split(r"(?<=[.!?])\s+", " ".join(lines[1:]).strip()) if s]
        return json.dumps({"facts": facts})
    if task == "revise":
        return json.dumps({"facts": [f"Not: {line}" for line in lines[1:]]})
    if task == "ask":
        return f"What exactly about: {' '.join(lines[1:])[:60]}?"
    if task in ("answer", "rephrase"):
        return f"In short: {' '.join(lines[1:])}"
    return "one two three"


def compare(rest: str, judge: str) -> str:
    """Judge two answers: the longer one, always the first, or with a word that is no verdict."""
    if judge != "longer":
        return {"first": "A", "none": "both are fine"}[judge]
    one, other = rest.split("\nA: ", 1)[1].split("\nB: ", 1)
    return "tie" if len(one) == len(other) else "A" if len(one) > len(other) else "B"


class Scripted:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.seen = 0
        self.log = os.open(args.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(self, event: str, digest: str, canary: bool) -> None:
        line = json.dumps({"event": event, "digest": digest, "time": time.time(), "canary": canary})
        os.write(self.log, line.encode() + b"\n")

    async def chat(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        body = json.loads(raw)
        digest = hashlib.sha256(raw).hexdigest()[:16]
        canary = "Count from one to ten" in body["messages"][-1]["content"]
        self.note("received", digest, canary)
        if self.args.need_key and request.headers.get("Authorization") != f"Bearer {KEY}":
            return web.json_response({"error": {"message": "Incorrect API key"}}, status=401)
        if not canary:
            self.seen += 1
        number = self.seen
        if self.args.delay:
            await asyncio.sleep(self.args.delay)
        broken = await self.broken(request, canary, number)
        if broken is not None:
            return broken
        text = answer_to(body, self.args.judge)
        if self.args.salt:
            text = text.replace("In short", f"In short {self.args.salt}")
        reply = completion(body["model"], text)
        response = web.json_response(reply)
        await response.prepare(request)
        await response.write_eof()
        self.note("answered", digest, canary)
        return response

    async def broken(self, request: web.Request, canary: bool, count: int) -> web.StreamResponse | None:
        mode = self.args.mode
        if mode == "ok" or (self.args.after and count <= self.args.after) or (mode == "die" and canary):
            return None
        if mode == "die":
            os._exit(1)
        echo = "" if self.args.echo_key is None else "x" * self.args.echo_key + request.headers.get("Authorization", "")
        if mode == "html":
            return web.Response(text=echo or "<html><body>nginx</body></html>", content_type="text/html")
        if mode == "not-json":
            return web.Response(text='{"choices": [', content_type="application/json")
        if mode.isdigit() and (self.args.times == 0 or count <= self.args.times):
            headers = {"Retry-After": self.args.retry_after} if self.args.retry_after else {}
            return web.json_response({"error": {"message": f"scripted {mode}{echo}"}}, status=int(mode), headers=headers)
        if mode == "too-long":
            message = "This model's maximum context length is 10 tokens."
            return web.json_response({"error": {"message": message}}, status=400)
        if mode == "half":
            response = web.StreamResponse(headers={"Content-Length": "5000", "Content-Type": "application/json"})
            await response.prepare(request)
            await response.write(b'{"choices": [{"mess')
            assert request.transport is not None
            request.transport.abort()
            return response
        if mode == "never":
            await asyncio.sleep(3600)
        if mode == "garbage":
            return web.json_response(completion("m", "no json, no facts" if self.args.garbage == "text" else ""))
        if mode == "redirect":
            return web.Response(status=302, headers={"Location": "http://192.0.2.1/v1/chat/completions"})
        return None


def completion(model: str, text: str) -> dict[str, Any]:
    """Make a chat completion's body."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": model,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 20, "completion_tokens": 10, "total_tokens": 30},
    }


async def models(_: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [{"id": "m", "object": "model"}]})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--log", required=True)
    parser.add_argument("--mode", default="ok")
    parser.add_argument("--after", type=int, default=0, help="behave for the first N requests")
    parser.add_argument("--times", type=int, default=0, help="misbehave for the first N requests only")
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--retry-after", default="")
    parser.add_argument("--need-key", action="store_true")
    parser.add_argument("--garbage", default="text")
    parser.add_argument("--echo-key", type=int, help="repeat the caller's key in errors, after so many letters")
    parser.add_argument("--salt", default="")
    parser.add_argument("--judge", default="longer", choices=["longer", "first", "none"])
    args = parser.parse_args()
    scripted = Scripted(args)
    app = web.Application(client_max_size=1 << 26)
    app.router.add_post("/v1/chat/completions", scripted.chat)
    app.router.add_get("/v1/models", models)
    web.run_app(app, sock=socket.socket(fileno=args.fd), print=None, access_log=None, shutdown_timeout=0.1)


class Running:
    """A scripted server under way."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, log: Path) -> None:
        self.process, self.url, self.log = process, url, log

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def received(self) -> list[str]:
        """The digests of the requests received, in order, without the question about weights."""
        return [e["digest"] for e in self.events() if e["event"] == "received" and not e["canary"]]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def scripted_server(folder: Path, *options: str, port: int = 0) -> Iterator[Running]:
    """Run a scripted server in a process of its own until the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(1024)  # connections wait in the queue until the process is up
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    log = folder / f"requests-{listener.getsockname()[1]}.log"
    command = [sys.executable, __file__, "--fd", str(listener.fileno()), "--log", str(log), *options]
    process = subprocess.Popen(command, pass_fds=[listener.fileno()], stderr=subprocess.DEVNULL)
    listener.close()
    try:
        yield Running(process, url, log)
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
