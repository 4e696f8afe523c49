"""The `m2rag` command. One module per command; what they share is in `common`.

Results go to standard output, everything else (progress, notes, errors) to standard error, so `--json` output can be
piped. Modules that take seconds to import (torch, the engine of the store) are imported when a command needs them.
"""

from __future__ import annotations

import io
import sys


def main() -> None:
    """Run the command line of this process; ends it with the exit code."""
    from m2rag.cli.app import app

    # A title with a letter that the terminal's encoding lacks is no reason to stop.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    app(prog_name="m2rag")
