"""Nothing leaves this machine under --offline, children included; and no key is ever to be found anywhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from scripted_server import KEY, scripted_server

from kt.errors import OfflineError
from kt.offline import check_addresses, is_loopback

COUNTER = """
import socket, sys
def sent(): return int(open('/sys/class/net/dummy0/statistics/tx_packets').read())
"""


def in_namespace(script: str, *args: object, outside: bool = False, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a network namespace that has loopback and, if `outside`, a route into the void that counts."""
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("ip"):
        pytest.skip("needs root, unshare and ip (iproute2) for a network namespace of its own")
    setup = ["ip link set lo up"]
    if outside:
        setup += [
            "mount -t sysfs sysfs /sys 2>/dev/null || true",  # the namespace's own devices
            "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 2>/dev/null || true",
            "ip link add dummy0 type veth peer name dummy1",
            "ip link set dummy0 arp off up && ip link set dummy1 arp off up",
            "ip addr add 10.99.0.2/24 dev dummy0",
            "ip route add default via 10.99.0.1",
        ]
    line = " && ".join([*setup, 'exec "$0" "$@"'])
    command = ["unshare", "-n", "-m", "sh", "-c", line, sys.executable, "-c", script, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=240)


BUILD = (
    COUNTER
    + """
import json, pathlib, runpy, subprocess
sys.path.insert(0, sys.argv[1])
from scripted_server import scripted_server
root, data = pathlib.Path(sys.argv[2]), sys.argv[3]
before = sent() if len(sys.argv) > 4 else 0
with scripted_server(root) as server:
    command = [sys.executable, '-m', 'kt', 'build-data', '--offline', '--backend', 'openai', '--base-url', server.url,
        '--model', 'm', '--prompts', 'compact', '--difficulty', 'all', '--data', data, '--cache', str(root / 'c'),
        '--out', str(root / 'out')]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for other in (['doctor'], ['cache', 'stats', '--cache', str(root / 'c')], ['check'], ['prompt', 'list']):
        assert subprocess.run([sys.executable, '-m', 'kt', *other], capture_output=True).returncode == 0, other
print(json.dumps({'sent': sent() - before if len(sys.argv) > 4 else 0}))
"""
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "qa.json"
    path.write_text(json.dumps([{"question": f"Q{i}?", "answer": f"One of {i}. Two of {i}."} for i in range(5)]))
    return path


def test_a_build_runs_where_there_is_loopback_only(tmp_path: Path, data: Path) -> None:
    done = in_namespace(BUILD, Path(__file__).parent, tmp_path, data)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/manifest.json").exists()


def test_no_packet_tries_to_leave_children_included(tmp_path: Path, data: Path) -> None:
    done = in_namespace(BUILD, Path(__file__).parent, tmp_path, data, "count", outside=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"sent": 0}


def test_that_detector_would_see_a_child_that_tries() -> None:
    child = "import socket; s = socket.socket(); s.settimeout(0.3); s.connect_ex(('93.184.216.34', 443))"
    script = f"{COUNTER}\nimport subprocess\nb = sent()\nsubprocess.run([sys.executable, '-c', {child!r}])\nprint(sent() - b)"
    done = in_namespace(script, outside=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


SLOW = """
import pathlib, subprocess, sys, time
root = pathlib.Path(sys.argv[1])
(root / 'resolv.conf').write_text('nameserver 10.99.0.1\\n')
subprocess.run(['mount', '--bind', root / 'resolv.conf', '/etc/resolv.conf'], check=True)
def seconds(*args):
    started = time.monotonic()
    subprocess.run([sys.executable, '-m', 'kt', *args], capture_output=True)
    return time.monotonic() - started
common = ['build-data', '--backend', 'openai', '--model', 'm', '--data', sys.argv[2], '--difficulty', 'all',
    '--cache', str(root / 'c'), '--out', str(root / 'out'), '--base-url']
usual = seconds(*common, 'http://127.0.0.1:9/v1')
for address in ('http://gpu.example.org:8000/v1', 'http://10.99.0.7:8000/v1'):
    print(seconds(*common, address) - usual)
for other in (['doctor'], ['cache', 'stats', '--cache', str(root / 'c')], ['check'], ['--help']):
    print(seconds(*other) - usual)
"""


def test_a_network_that_swallows_packets_delays_no_command_by_more_than_two_seconds(tmp_path: Path, data: Path) -> None:
    done = in_namespace(SLOW, tmp_path, data, outside=True)
    assert done.returncode == 0, done.stderr
    assert max(map(float, done.stdout.split())) < 2


ENGINE = (
    COUNTER
    + """
import pathlib
from kt.serving import serve
before = sent()
with serve(sys.argv[1], sys.argv[2], max_model_len=512, log_path=sys.argv[3]) as server:
    print(server.base_url, file=sys.stderr)
print(sent() - before)
"""
)


@pytest.mark.parametrize(
    ("engine", "model"),
    [
        pytest.param("llama-cpp", "tiny_gguf", marks=pytest.mark.xdist_group("llama")),
        pytest.param("vllm", "tiny_llama", marks=pytest.mark.xdist_group("vllm")),
    ],
)
def test_engines_try_no_other_address(engine: str, model: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    pytest.importorskip("vllm" if engine == "vllm" else "llama_cpp")
    done = in_namespace(ENGINE, engine, request.getfixturevalue(model), tmp_path / "log", outside=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 0


def kt(*args: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kt", "build-data", "--prompts", "compact", "--difficulty", "all", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=60)


def test_offline_refuses_other_hosts_and_fallback(tmp_path: Path, data: Path) -> None:
    common = ["--data", data, "--cache", tmp_path / "c", "--out", tmp_path / "out", "--model", "m", "--offline"]
    other = kt(*common, "--backend", "openai", "--base-url", "http://gpu-server:8000/v1")
    assert other.returncode == 3
    assert "gpu-server is not this machine" in other.stderr
    fallback = kt(*common, "--backend", "openai", "--base-url", "http://127.0.0.1:9/v1", "--fallback", "openai")
    assert fallback.returncode == 1
    assert "offline and fallback exclude each other" in fallback.stderr
    hub = kt(*common, "--backend", "vllm", "--model", "org/model-of-the-hub")
    assert hub.returncode == 3
    assert "no folder or file on this machine" in hub.stderr


def test_what_is_inside() -> None:
    for host in ("127.0.0.1", "localhost", "::1", "127.8.0.9"):
        assert is_loopback(host)
    for host in ("10.0.0.1", "localhost.example.org", "0.0.0.0", "example.org", ""):
        assert not is_loopback(host)
    check_addresses(["http://gpu:8000/v1", "http://[::1]:8000/v1"], ["gpu"])
    with pytest.raises(OfflineError):
        check_addresses(["http://gpu2:8000/v1"], ["gpu"])


def test_no_key_anywhere(tmp_path: Path, data: Path) -> None:
    """Keys of both servers in use, in runs that succeed and that fail, and then looked for in every byte left behind."""
    other = "sk-other-Zx81-never-seen-either"
    keys = {"KT_API_KEY": KEY, "OPENAI_API_KEY": other}
    said = []
    for number, (mode, options) in enumerate(
        [
            ("ok", []),
            ("401", []),
            ("500", ["--retries", "0"]),
            ("html", ["--retries", "0"]),
            ("garbage", ["--fallback", "openai"]),
            ("ok", ["--dry-run"]),
            ("ok", ["--json"]),
        ]
    ):
        with (
            scripted_server(tmp_path / f"s{number}", "--mode", mode, "--need-key") as server,
            scripted_server(tmp_path / f"f{number}") as api,
        ):
            common = ["--backend", "openai", "--base-url", server.url, "--model", f"m{number}", "--data", data]
            common += ["--cache", tmp_path / "c", "--out", tmp_path / f"out{number}", *options]
            common += ["--fallback-url", api.url] if "--fallback" in options else []
            done = kt(*common, **keys)
            said.append(done.stdout + done.stderr)
            assert "Traceback" not in done.stderr
    left = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()) + "".join(said).encode()
    assert b"extract" in left
    for key in (KEY, other):
        assert key.encode() not in left
        assert key[3:].encode() not in left
