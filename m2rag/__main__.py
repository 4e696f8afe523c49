"""`python -m m2rag` is the `m2rag` command."""

from __future__ import annotations

from m2rag.cli import main

if __name__ == "__main__":
    main()
