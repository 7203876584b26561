"""A first run: prompts of 1.5 KB sent to an instant local server, 64 at a time, every completion kept before it is used.

    python bench/first_run.py [--prompts 2000] [--rounds 3]

Beside kt: AsyncOpenAI without a cache (the yardstick), bare aiohttp without one, and the peers with their caches on disk
(bench/README.md says how to install those). Every round starts from empty caches.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

from instant_server import instant_server
from measured import interleaved, median_ratio, medians, peer_rate, peers_python, prompts, report, target

CONCURRENCY = 64
PEERS = ("AsyncOpenAI", "LiteLLM, disk cache", "LangChain, SQLiteCache", "DSPy, disk cache")


def kt_rate(url: str, count: int) -> float:
    """Completions a second through kt's client: key, lease, send, check, commit, and the lease given back."""
    from kt.cache import Cache
    from kt.client import Client
    from kt.endpoint import Endpoint
    from kt.pipeline import Step, fill
    from kt.request import chat, plain_params

    params = plain_params({"temperature": 0, "max_tokens": 384})
    step = Step("ask", lambda one: [chat([{"role": "user", "content": one["text"]}], params)], lambda _record, _found: [])
    asked = [{"id": number, "text": text} for number, text in enumerate(prompts(count))]
    with tempfile.TemporaryDirectory() as folder, Cache(Path(folder) / "c.sqlite") as cache:
        with Client(cache, [Endpoint("openai", [url], "m")], CONCURRENCY) as client:
            client.run(fill(step, [{"id": -1, "text": "Loads aiohttp and opens the first connection."}], client, lambda: None))
            started = time.perf_counter()
            client.run(fill(step, asked, client, lambda: None))
            rate = count / (time.perf_counter() - started)
        kept = cache.db.execute("SELECT count(*) FROM completions WHERE status = 'ok'").fetchone()[0]
    if kept != count + 1:
        raise SystemExit(f"{kept - 1} completions of {count} are in the cache")
    return rate


def aiohttp_rate(url: str, count: int) -> float:
    """Calls a second with aiohttp and nothing else: what the network side allows."""
    import aiohttp
    import orjson
    import uvloop

    asked = iter(prompts(count))

    async def work(session: aiohttp.ClientSession) -> None:
        for text in asked:
            body = {"model": "m", "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 384}
            async with session.post(url + "/chat/completions", data=orjson.dumps(body)) as reply:
                assert orjson.loads(await reply.read())["choices"]

    async def everybody() -> float:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            started = time.perf_counter()
            await asyncio.gather(*(work(session) for _ in range(CONCURRENCY)))
            return count / (time.perf_counter() - started)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(everybody())


def server_rate(url: str, count: int) -> float:
    """Answers a second to a client that only writes and reads bytes: the server must be well above all others."""
    import uvloop

    host, port = url.removeprefix("http://").removesuffix("/v1").split(":")
    body = b'{"model":"m","messages":[{"role":"user","content":"%s"}]}' % (b"x" * 1500)
    message = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)

    async def work() -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        for _ in range(count // CONCURRENCY):
            writer.write(message)
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.rsplit(b" ", 1)[1]))
        writer.close()

    async def everybody() -> float:
        started = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(CONCURRENCY)))
        return count / (time.perf_counter() - started)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(everybody())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    python, count = peers_python(), options.prompts
    with instant_server() as url:
        ways = {
            "kt": lambda: kt_rate(url, count),
            "aiohttp": lambda: aiohttp_rate(url, count),
            "the server itself": lambda: server_rate(url, count),
        }
        # AsyncOpenAI is measured in the peers' environment, or in this one if it has the package.
        for name in PEERS if python else PEERS[:1]:
            ways[name] = lambda name=name: peer_rate(python or sys.executable, "first", name, url, count)
        found = interleaved(ways, options.rounds)
    rates = medians(found)
    peers = {name: round(median_ratio(found, "kt", name), 2) for name in ways if name != "kt"}
    report(
        "first_run",
        {
            "prompts": count,
            "concurrency": CONCURRENCY,
            "per_second": {name: round(rate, 1) for name, rate in rates.items()},
            "rounds": {name: [round(x, 1) for x in numbers] for name, numbers in found.items()},
            "kt / AsyncOpenAI": target(peers["AsyncOpenAI"], 5.0),
            "kt / other": peers,
            "peers": "installed" if python else "not installed: see bench/README.md",
        },
    )


if __name__ == "__main__":
    main()
