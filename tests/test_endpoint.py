"""Servers that come back are asked again; what a server repeats of the key is seen by nobody; one failure leaves no noise."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted_server import KEY, scripted_server

from kt import pipeline
from kt.cache import Cache
from kt.client import Client
from kt.endpoint import Endpoint
from kt.errors import BackendError, Unavailable
from kt.request import Request, chat

PARAMS = {"max_tokens": 16, "temperature": 0}


def ask(text: str) -> Request:
    return chat([{"role": "user", "content": f"ask\nQ\n{text}"}], PARAMS)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def dead_url(port: int) -> str:
    return f"http://127.0.0.1:{port}/v1"


def endpoint(*urls: str, **options: Any) -> Endpoint:
    return Endpoint("openai", list(urls), options.pop("model", "m"), **{"retries": 0, "timeout": 5.0, **options})


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    with Cache(tmp_path / "c.sqlite") as opened:
        yield opened


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kt.endpoint.COOL_DOWN_SECONDS", 0.2)


def step(name: str, requests: Callable[[dict[str, Any]], list[Request]] = lambda record: [ask(record["id"])]) -> pipeline.Step:
    return pipeline.Step(name, requests, lambda record, completions: [{"id": record["id"]}])


def fill(client: Client, *names: str, of: pipeline.Step | None = None) -> None:
    client.run(pipeline.fill(of or step("s"), [{"id": name} for name in names], client, lambda: None))


# ---- coming back -----------------------------------------------------------------------------------------------------


def test_the_local_server_is_asked_again_once_it_is_back(cache: Cache, tmp_path: Path, impatient: None) -> None:
    """The fallback costs money: it stands in for as long as the local server is away, not for the rest of the run."""
    port = free_port()
    with scripted_server(tmp_path / "api") as api:
        backends = [endpoint(dead_url(port)), endpoint(api.url, model="big", fallback=True)]
        with Client(cache, backends) as client:
            fill(client, "a", "b")
            assert (backends[0].down, len(api.received())) == (True, 2)
            with scripted_server(tmp_path / "local", port=port) as local:
                for number in range(50):
                    fill(client, f"while {number}")
                    client.run(asyncio.sleep(0.05))
                    if local.received():
                        break
                sent = len(api.received())
                fill(client, *(f"then {number}" for number in range(20)))
                assert len(api.received()) == sent
                assert len(local.received()) >= 20


def test_one_of_several_urls_shares_the_load_again_once_it_is_back(cache: Cache, tmp_path: Path, impatient: None) -> None:
    port = free_port()
    slow = ["--delay", "0.01"]
    with scripted_server(tmp_path / "a", *slow) as one, Client(cache, [endpoint(dead_url(port), one.url)]) as client:
        fill(client, *(f"alone {number}" for number in range(10)))
        assert len(one.received()) == 10
        with scripted_server(tmp_path / "b", *slow, port=port) as back:
            for number in range(50):
                fill(client, f"while {number}")
                client.run(asyncio.sleep(0.05))
                if back.received():
                    break
            fill(client, *(f"shared {number}" for number in range(40)))
            assert len(back.received()) >= 15


def test_a_server_that_fails_again_and_again_is_looked_for_less_and_less(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lists its models and answers nothing: without patience that grows, every cool-down would cost calls and pauses."""
    monkeypatch.setattr("kt.endpoint.COOL_DOWN_SECONDS", 0.05)
    with scripted_server(tmp_path / "bad", "--mode", "500") as bad, scripted_server(tmp_path / "api") as api:
        backends = [endpoint(bad.url, weights_known=True), endpoint(api.url, model="big", fallback=True)]
        with Client(cache, backends, workers=1) as client:
            started = time.monotonic()
            while time.monotonic() - started < 2:
                fill(client, *(f"{time.monotonic_ns()} {number}" for number in range(5)))
                client.run(asyncio.sleep(0.01))
    assert 2 <= len(bad.received()) <= 8  # after 0.05, 0.1, 0.2, 0.4, 0.8 seconds; each cool-down alike: 40


# ---- the key ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["html", "500", "401"])
def test_a_key_that_the_server_repeats_is_not_shown(cache: Cache, tmp_path: Path, mode: str) -> None:
    """Wherever in the answer it stands: where the message is cut, or in a page that is no completion."""
    for length in (0, 10, 45, 265, 275, 285):
        with scripted_server(tmp_path / str(length), "--mode", mode, "--echo-key", str(length)) as server:
            known = {"api_key": KEY, "weights_known": True}
            with Client(cache, [endpoint(server.url, **known)]) as client, pytest.raises(BackendError) as caught:
                fill(client, f"{length}")
            assert KEY[:8] not in str(caught.value)


def test_an_answer_keeps_the_word_that_is_also_the_key(cache: Cache, tmp_path: Path) -> None:
    with scripted_server(tmp_path) as server:
        for key, said in (("EMPTY", "The EMPTY set"), (KEY, "The *** set")):
            with Client(cache, [endpoint(server.url, model=key[:5], api_key=key)]) as client:
                fill(client, f"The {key} set")
                row = client.lookup(client.backends[0], ask(f"The {key} set"))
                assert row is not None
                assert said in row.text


# ---- no noise --------------------------------------------------------------------------------------------------------


def test_a_record_of_many_requests_that_fails_leaves_none_behind(
    cache: Cache, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    many = step("many", lambda record: [ask(f"{record['id']} {number}") for number in range(6)])
    with scripted_server(tmp_path, "--mode", "500", "--after", "3", "--delay", "0.05") as server:
        left: list[str] = []

        async def run() -> None:
            with pytest.raises(Unavailable):
                await pipeline.fill(many, [{"id": "a"}], client, lambda: None)
            left.extend(str(task) for task in asyncio.all_tasks() if "_ask" in str(task) or "fetch" in str(task))

        with Client(cache, [endpoint(server.url, weights_known=True)]) as client, caplog.at_level(logging.ERROR):
            client.run(run())
        assert left == []
        assert caplog.records == []
    assert cache.db.execute("SELECT count(*) FROM completions").fetchone() == (3,)
    assert cache.db.execute("SELECT count(*) FROM leases").fetchone() == (0,)


def test_a_failure_in_one_record_leaves_the_client_usable(cache: Cache, tmp_path: Path) -> None:
    port = free_port()
    with Client(cache, [endpoint(dead_url(port))]) as client:
        with pytest.raises(Unavailable):
            fill(client, *(str(number) for number in range(50)))
        with scripted_server(tmp_path) as server:
            client.backends = [endpoint(server.url)]
            fill(client, *(str(number) for number in range(50)))
            assert len(server.received()) == 50
    assert client.counters.sent == 50
