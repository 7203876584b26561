"""The client asks once, waits when told to, goes elsewhere when it must, and never spends more than allowed."""

from __future__ import annotations

import asyncio
import email.utils
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted_server import KEY, Running, scripted_server

from kt.cache import Cache
from kt.client import Client
from kt.endpoint import Endpoint
from kt.errors import BackendError, BudgetError, InputError, Refused, Unavailable
from kt.request import Completion, Request, chat
from kt.wire import wire_body

PARAMS = {"max_tokens": 16, "temperature": 0}


def ask(text: str) -> Request:
    return chat([{"role": "user", "content": f"ask\nQ\n{text}"}], PARAMS)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    with Cache(tmp_path / "c.sqlite") as opened:
        yield opened


def endpoint(*servers: Running | str, **options: Any) -> Endpoint:
    urls = [server if isinstance(server, str) else server.url for server in servers]
    return Endpoint("openai", urls, options.pop("model", "m"), **{"retries": 2, "timeout": 5.0, **options})


def fetch(client: Client, requests: list[Request], backend: int = 0) -> list[Completion]:
    async def all_of_them() -> list[Completion]:
        asked = [client.address(client.backends[backend], request) for request in requests]
        return await asyncio.gather(*(client.fetch(one) for one in asked))

    return client.run(all_of_them())


def dead_url() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/v1"


# ---- once ------------------------------------------------------------------------------------------------------------


def test_a_hundred_prompts_sent_twice_make_a_hundred_calls(cache: Cache, tmp_path: Path) -> None:
    requests = [ask(str(i)) for i in range(100)]
    with scripted_server(tmp_path, "--delay", "0.02") as server, Client(cache, [endpoint(server)]) as client:
        found = fetch(client, requests + requests)
        again = fetch(client, requests)
        assert found[:100] == found[100:] == again
        assert len(server.received()) == 100
        assert (client.counters.sent, client.counters.hits) == (100, 100)


def test_a_long_conversation_is_cached_like_a_short_one(cache: Cache, tmp_path: Path) -> None:
    turns = [{"role": ("user", "assistant")[i % 2], "content": f"turn {i} " * 20} for i in range(301)]
    with scripted_server(tmp_path) as server, Client(cache, [endpoint(server)]) as client:
        for _ in range(3):
            fetch(client, [chat(turns, PARAMS), chat(turns[:-2], PARAMS)])
        assert len(server.received()) == 2


def test_nothing_expires(cache: Cache, tmp_path: Path) -> None:
    with scripted_server(tmp_path) as server, Client(cache, [endpoint(server)]) as client:
        fetch(client, [ask("old")])
        cache.db.execute("UPDATE completions SET created = '1999-01-01T00:00:00.000000Z'")
        fetch(client, [ask("old"), *(ask(str(i)) for i in range(300)), ask("old")])
        assert len(server.received()) == 301


# ---- what servers do -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "after"), [("429", "1"), ("429", "date"), ("503", "1")])
def test_a_rate_limit_is_waited_out(cache: Cache, tmp_path: Path, status: str, after: str) -> None:
    wait = email.utils.formatdate(time.time() + 2, usegmt=True) if after == "date" else after
    options = ["--mode", status, "--times", "1", "--retry-after", wait]
    with scripted_server(tmp_path, *options) as server, Client(cache, [endpoint(server, weights_known=True)]) as client:
        started = time.monotonic()
        assert fetch(client, [ask("a")])[0].status == "ok"
        assert time.monotonic() - started > 0.9
        assert len(server.received()) == 2


def test_a_server_error_is_tried_again_and_then_given_up(cache: Cache, tmp_path: Path) -> None:
    for times, calls in (("2", 3), ("0", 3)):
        folder = tmp_path / times
        with (
            scripted_server(folder, "--mode", "500", "--times", times) as server,
            Client(cache, [endpoint(server, weights_known=True)]) as client,
        ):
            if times == "2":
                assert fetch(client, [ask("a")])[0].status == "ok"
            else:
                with pytest.raises(Unavailable, match=r"HTTP 500: scripted 500, 3 times"):
                    fetch(client, [ask("b")])
            assert len(server.received()) == calls


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("html", r"text/html that is no completion \('<html>"),
        ("not-json", "no completion"),
        ("half", "connection broke off"),
        ("never", "no answer within 1 s"),
        ("redirect", "HTTP 302"),
    ],
)
def test_a_broken_server_is_named(cache: Cache, tmp_path: Path, mode: str, words: str) -> None:
    known = {"weights_known": True, "timeout": 1.0, "retries": 1}
    with scripted_server(tmp_path, "--mode", mode) as server, Client(cache, [endpoint(server, **known)]) as client:
        with pytest.raises(BackendError, match=words) as caught:
            fetch(client, [ask("a")])
        assert server.url in str(caught.value)
    assert cache.db.execute("SELECT count(*) FROM completions").fetchone() == (0,)
    assert cache.db.execute("SELECT count(*) FROM leases").fetchone() == (0,)


@pytest.mark.parametrize(("mode", "words"), [("401", "KT_API_KEY right"), ("404", "serve 'm'"), ("400", "not one that")])
def test_a_refusal_is_final(cache: Cache, tmp_path: Path, mode: str, words: str) -> None:
    with scripted_server(tmp_path, "--mode", mode) as server, Client(cache, [endpoint(server)]) as client:
        with pytest.raises(Refused, match=words):
            fetch(client, [ask("a")])
        assert len([e for e in server.events() if e["event"] == "received"]) == 1


def test_the_key_is_sent_and_never_shown(cache: Cache, tmp_path: Path) -> None:
    with scripted_server(tmp_path, "--need-key") as server:
        with Client(cache, [good := endpoint(server, api_key=KEY)]) as client:
            assert fetch(client, [ask("a")])[0].status == "ok"
            assert KEY not in repr(good)
        with Client(cache, [endpoint(server, api_key="sk-wrong-key")]) as client, pytest.raises(Refused) as caught:
            fetch(client, [ask("b")])
        assert "sk-wrong-key" not in str(caught.value)
    with pytest.raises(InputError, match="cannot be sent"):
        endpoint("http://127.0.0.1:1/v1", api_key="a\nb")
    with pytest.raises(InputError, match="no key or password") as leaked:
        endpoint("http://user:hunter2@127.0.0.1:1/v1")
    assert "hunter2" not in str(leaked.value)


def test_a_request_longer_than_the_context_is_kept_as_such(cache: Cache, tmp_path: Path) -> None:
    with scripted_server(tmp_path, "--mode", "too-long") as server, Client(cache, [endpoint(server)]) as client:
        assert fetch(client, [ask("a")])[0].status == "too-long"
        assert fetch(client, [ask("a")])[0].status == "too-long"
        assert len(server.received()) == 1


def test_an_answer_that_breaks_its_schema_is_kept_and_not_served(cache: Cache, tmp_path: Path) -> None:
    schema = {"type": "object", "required": ["facts"]}
    asked = chat([{"role": "user", "content": "ask\nno json"}], PARAMS, schema=schema)
    with scripted_server(tmp_path) as server, Client(cache, [endpoint(server)]) as client:
        assert fetch(client, [asked])[0].status == "invalid"


# ---- several servers, dead servers -----------------------------------------------------------------------------------


def test_several_urls_share_the_load_and_one_may_die(cache: Cache, tmp_path: Path) -> None:
    slow = ["--delay", "0.02"]
    with scripted_server(tmp_path / "a", *slow) as one, scripted_server(tmp_path / "b", *slow) as two:
        with Client(cache, [endpoint(one, two)]) as client:
            fetch(client, [ask(str(i)) for i in range(100)])
            shares = [len(one.received()), len(two.received())]
            assert min(shares) > 30
            one.kill()
            assert {c.status for c in fetch(client, [ask(f"more {i}") for i in range(50)])} == {"ok"}
        assert len(two.received()) == shares[1] + 50


def test_a_dead_server_comes_back(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kt.endpoint.COOL_DOWN_SECONDS", 0.2)
    url = dead_url()
    with Client(cache, [endpoint(url, retries=0)]) as client:
        with pytest.raises(Unavailable, match="connection failed"):
            fetch(client, [ask("a")])
        with scripted_server(tmp_path, port=int(url.split(":")[2].split("/")[0])):
            deadline = time.monotonic() + 5
            while client.backends[0].down and time.monotonic() < deadline:
                with pytest.raises(Unavailable):
                    fetch(client, [ask("a")])
                client.run(asyncio.sleep(0.1))
            assert fetch(client, [ask("a")])[0].status == "ok"


def test_a_dead_server_costs_little_after_the_first_call(cache: Cache) -> None:
    with Client(cache, [endpoint(dead_url())]) as client:
        with pytest.raises(Unavailable):
            fetch(client, [ask("first")])
        started = time.monotonic()
        for number in range(100):
            with pytest.raises(Unavailable):
                fetch(client, [ask(str(number))])
        assert (time.monotonic() - started) / 100 < 0.020


def test_a_network_that_swallows_packets_costs_two_seconds_at_most(cache: Cache) -> None:
    """A listener whose queue is full drops what comes, as a firewall does."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        address = deaf.getsockname()
        fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(address)
            fillers.append(filler)
        with Client(cache, [endpoint(f"http://127.0.0.1:{address[1]}/v1")]) as client:
            started = time.monotonic()
            with pytest.raises(Unavailable, match="no connection within"):
                fetch(client, [ask("a")])
            assert time.monotonic() - started < 2
        for filler in fillers:
            filler.close()


# ---- other weights, money --------------------------------------------------------------------------------------------


def test_other_weights_under_the_same_name_are_noticed(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted_server(tmp_path / "a") as server, Client(cache, [endpoint(server)]) as client:
        fetch(client, [ask("a")])
    monkeypatch.setattr("kt.client.CANARY", chat([{"role": "user", "content": "ask\nCount from one to ten\nx"}], PARAMS))
    with scripted_server(tmp_path / "b") as server:
        with Client(cache, [endpoint(server)]) as client:
            fetch(client, [ask("a")])  # in the cache: nobody is asked, nothing can be mixed
            with pytest.raises(BackendError, match=r"not the one that filled.*--revision"):
                fetch(client, [ask("b")])
        with Client(cache, [endpoint(server, revision="new")]) as client:
            assert fetch(client, [ask("a")])[0].status == "ok"
            assert len(server.received()) == 1


def test_money_is_never_passed(cache: Cache, tmp_path: Path) -> None:
    price = {"price_in": 1e-5, "price_out": 1e-3}  # a call may cost 0.016 and a little, and does cost 0.0102
    requests = [ask(str(i)) for i in range(100)]
    with scripted_server(tmp_path, "--delay", "0.01") as server:
        with Client(cache, [endpoint(server, **price)], max_cost=0.2) as client:
            with pytest.raises(BudgetError, match=r"--max-cost 0\.2"):
                fetch(client, requests)
            client.run(asyncio.sleep(0.1))
            assert 0.17 < client.counters.cost <= 0.2
            kept = cache.db.execute("SELECT count(*), sum(cost) FROM completions").fetchone()
            assert kept[0] >= 17
            assert kept[1] <= 0.2
        with Client(cache, [endpoint(server, **price)], max_cost=10) as client:
            fetch(client, requests)
            assert client.counters.sent <= 100 - 17
    assert cache.db.execute("SELECT count(*) FROM completions").fetchone() == (100,)


def test_dialects_ask_for_json_in_their_own_way() -> None:
    request = chat([{"role": "user", "content": "x"}], PARAMS, schema={"type": "object"}, prompt="rewrite-answer")
    assert wire_body(request, "m", "llama-cpp")["response_format"] == {"type": "json_object", "schema": {"type": "object"}}
    assert wire_body(request, "m", "vllm")["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert wire_body(ask("x"), "m", "vllm") == {"model": "m", **ask("x").body}
