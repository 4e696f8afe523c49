"""Processes that a test kills while they work."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence


def kill_once_done(
    script: Sequence[str], n_done: int, *, env: Mapping[str, str] | None = None, after: float = 0.0
) -> int:
    """Run a Python script and kill it (-9) once it has written "done N" with N at least `n_done`.

    Args:
        script: its path and arguments.
        n_done: how much it must have done.
        env: its environment; default: this process's.
        after: seconds between its word and its end, so that it is killed in the middle of something.

    Returns:
        The last N it wrote.
    """
    process = subprocess.Popen([sys.executable, *script], stdout=subprocess.PIPE, text=True, env=env)
    assert process.stdout is not None
    done = 0
    for said in process.stdout:
        if said.startswith("done"):
            done = int(said.split()[1])
            if done >= n_done:
                break
    time.sleep(after)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it was over before it was killed"
    return done
