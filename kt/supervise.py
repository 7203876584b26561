"""Runs a program and ends it, with all its children, when whoever started this goes away: `python -m kt.supervise -- CMD`.

The starter holds the other end of standard input. Whatever ends the starter, kill -9 included, closes it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time

GRACE_SECONDS = 8.0
PR_SET_PDEATHSIG = 1


def main(command: list[str]) -> int:
    """Run the command until it ends, or until standard input is closed or this process is told to stop."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_die_with_parent)  # noqa: PLW1509
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(name, lambda *_: _stop(child))
    threading.Thread(target=_stop_at_end_of_input, args=(child,), daemon=True).start()
    code = child.wait()
    _kill_group(child, signal.SIGKILL)  # what the program left behind
    return code if code >= 0 else 128 - code


def _stop_at_end_of_input(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    _stop(child)


def _stop(child: subprocess.Popen[bytes]) -> None:
    """Ask the whole group to end, then make it."""
    _kill_group(child, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    while child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    _kill_group(child, signal.SIGKILL)


def _kill_group(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(OSError):
        os.killpg(child.pid, number)


def _die_with_parent() -> None:
    """On Linux, have the kernel end the program should this supervisor itself be killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[2:]))
