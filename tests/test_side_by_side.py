"""Two parts at once: the second in a copy of the process, of which nothing stays behind."""

from __future__ import annotations

import os
import sys
import time

import pytest

from kt.side_by_side import side_by_side

pytestmark = pytest.mark.skipif(sys.platform != "linux" or (os.cpu_count() or 1) < 2, reason="needs Linux and two cores")


def children() -> list[int]:
    with open(f"/proc/self/task/{os.getpid()}/children") as stream:
        return [int(pid) for pid in stream.read().split()]


def test_both_run_and_the_second_in_another_process() -> None:
    ran: list[int] = []
    said = side_by_side(lambda: ran.append(os.getpid()), lambda: {"pid": os.getpid()})
    assert ran == [os.getpid()]
    assert said is not None
    assert said["pid"] != os.getpid()


def test_a_second_part_that_fails_is_left_to_the_caller() -> None:
    before = children()

    def there() -> None:
        raise ValueError("in the copy")

    assert side_by_side(lambda: None, there) is None
    assert children() == before


def test_a_first_part_that_fails_ends_the_second() -> None:
    before = children()
    with pytest.raises(KeyboardInterrupt):
        side_by_side(lambda: (_ for _ in ()).throw(KeyboardInterrupt()), lambda: time.sleep(600))
    assert children() == before
