"""Run by tests in a process of its own: `index_worker.py ACTION INDEX DOCS [SECONDS_PER_TEXT]`.

Actions: `add` and `sync` index the folder and print one line per progress report, and `sync` one before it deletes;
`hold` opens the index, says so and waits.
"""

from __future__ import annotations

import sys
import time

from fake_embedder import HashEmbedder

from m2rag.index import LongDocumentIndex


def main() -> None:
    action, index, docs = sys.argv[1:4]
    seconds = float(sys.argv[4]) if len(sys.argv) > 4 else 0.0
    with LongDocumentIndex(index, HashEmbedder(seconds_per_text=seconds)) as opened:
        if action == "hold":
            say("open")
            sys.stdin.read()
            return
        run = opened.add
        if action == "sync":
            run, delete = opened.sync, opened._store.delete
            opened._store.delete = lambda ids: (say("deleting"), delete(ids[:1]), time.sleep(1), delete(ids))
        try:
            run(docs, batch_tokens=60, progress=lambda at: say(f"done {at.done} of {at.total}"))
        except KeyboardInterrupt:
            say("interrupted")
            raise


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
