"""Run by tests in a process of its own: `kill_worker.py INDEX N_DOCUMENTS`; prints one line per progress report."""

from __future__ import annotations

import sys

from real_documents import long_documents

from langchain_m2rag import M2Embeddings, M2QdrantVectorStore


def main() -> None:
    location, n = sys.argv[1], int(sys.argv[2])
    with M2QdrantVectorStore(location, M2Embeddings(), batch_tokens=4_000) as store:
        store.add_documents(long_documents(n), progress=lambda at: say(f"done {at.done} of {at.total}"))


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
