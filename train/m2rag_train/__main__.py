"""python -m m2rag_train RECIPE ...: what `m2rag train RECIPE ...` does, for torchrun and accelerate."""

from __future__ import annotations

import sys

from m2rag.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "train")
    main()
