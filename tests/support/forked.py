"""A process that dies in the middle of something, without the seconds that a new one takes to import everything."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable


def end_of_a_child(act: Callable[[], object], timeout: float = 120.0) -> int:
    """Call `act` in a fork of this process.

    Args:
        act: what it does; its own file handles and threads only, since no other thread comes along.
        timeout: seconds after which it is taken to hang.

    Returns:
        Its exit code: minus the number of the signal that ended it, 0 where nothing did.
    """
    child = multiprocessing.get_context("fork").Process(target=act)
    child.start()
    child.join(timeout)
    hangs = child.is_alive()
    if hangs:
        child.kill()
        child.join()
    assert not hangs and child.exitcode is not None, f"the child was still there after {timeout:.0f} s"
    return child.exitcode
