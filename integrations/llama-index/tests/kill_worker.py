"""Run by tests in a process of its own: `kill_worker.py INDEX N_DOCUMENTS`; prints one line per progress report."""

from __future__ import annotations

import sys

from real_documents import long_documents

from llama_index.embeddings.m2rag import M2Embedding, M2LongDocumentRetriever
from m2rag import LongDocumentIndex


def main() -> None:
    location, n = sys.argv[1], int(sys.argv[2])
    with LongDocumentIndex(location, M2Embedding().embedder) as index:
        retriever = M2LongDocumentRetriever(index)
        retriever.add_documents(
            long_documents(n), batch_tokens=4_000, progress=lambda at: say(f"done {at.done} of {at.total}")
        )


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
