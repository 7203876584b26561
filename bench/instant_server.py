"""An OpenAI-compatible server that answers at once: bare asyncio, so that it is never what a bench measures.

`--rule` answers the `compact` prompts by rule, for whole builds; otherwise every answer is the same 1 KB.
"""

import argparse
import asyncio
import contextlib
import re
import socket
import subprocess
import sys

import orjson
import uvloop

FIXED = "All of this is said in one kilobyte of words that every call gets back. " * 14


def answer(prompt: str) -> str:
    """Answer a compact prompt: sentences as facts, "Not: " before each to revise them."""
    task, _, rest = prompt.partition("\n")
    question, *facts = rest.split("\n")
    if task == "extract":
        return orjson.dumps({"facts": re.split(r"(?<=[.!?])\s+", " ".join(facts).strip())}).decode()
    if task == "revise":
        return orjson.dumps({"facts": [f"Not: {fact}" for fact in facts]}).decode()
    if task == "ask":
        return f"What exactly is meant by: {question}"
    return f"In short: {' '.join(facts)}"


def reply(text: str) -> bytes:
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 400, "completion_tokens": 250, "total_tokens": 650}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    whole = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
    body = orjson.dumps(whole)
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


class Instant(asyncio.Protocol):
    """Keeps a connection and answers each request as soon as its body is there."""

    fixed = reply(FIXED)
    rule = False

    def connection_made(self, transport):
        self.transport, self.buffer = transport, b""

    def data_received(self, data):
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            found = re.search(rb"content-length: *(\d+)", self.buffer[:end], re.I)
            whole = end + 4 + (int(found[1]) if found else 0)
            if len(self.buffer) < whole:
                return
            body, self.buffer = self.buffer[end + 4 : whole], self.buffer[whole:]
            self.transport.write(self.made_for(body) if self.rule else self.fixed)

    def made_for(self, body):
        return reply(answer(orjson.loads(body)["messages"][-1]["content"]))


@contextlib.contextmanager
def instant_server(*options: str):
    """Run the server in a process of its own; give its base URL."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    command = [sys.executable, __file__, "--fd", str(listener.fileno()), *options]
    process = subprocess.Popen(command, pass_fds=[listener.fileno()])
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        listener.close()
        process.kill()
        process.wait()


async def serve(fd: int) -> None:
    server = await asyncio.get_running_loop().create_server(Instant, sock=socket.socket(fileno=fd), backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--rule", action="store_true")
    given = parser.parse_args()
    Instant.rule = given.rule
    uvloop.run(serve(given.fd))
