"""Run by tests in a process of its own: `index_worker.py ACTION INDEX DOCS [SECONDS_PER_TEXT]`.

Actions: `add` indexes the folder and prints one line per progress report; `hold` opens the index, says so and waits.
"""

from __future__ import annotations

import sys

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
        try:
            opened.add(docs, batch_tokens=60, progress=lambda at: say(f"done {at.done} of {at.total}"))
        except KeyboardInterrupt:
            say("interrupted")
            raise


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
