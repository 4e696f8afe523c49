"""Query-document pairs from documents, and the check that no test text is among them.

python -m m2rag_train.corpus_pairs make --data DATA/train --out PAIRS
python -m m2rag_train.corpus_pairs make --data DATA/train --out ALL --keep-overlapping
python -m m2rag_train.corpus_pairs check --pairs ALL --tasks DATA/bench/* --report overlap.json --ids overlapping.txt
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from m2rag_train.corpus_pairs.make import DEVELOPMENT, OVERLAPPING, make
from m2rag_train.corpus_pairs.overlap import check


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m m2rag_train.corpus_pairs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make", help="write pairs, and development tasks of documents that are held out")
    making.add_argument("--data", type=Path, required=True, help="folder with corpus/ and pairs/")
    making.add_argument("--out", type=Path, required=True)
    making.add_argument("--keep-overlapping", action="store_true", help="also documents that share text with a test")
    checking = commands.add_parser("check", help="find documents that share text with a test")
    checking.add_argument("--pairs", type=Path, required=True, help="what make --keep-overlapping wrote")
    checking.add_argument("--tasks", type=Path, nargs="+", required=True, help="folders in BEIR's layout")
    checking.add_argument("--report", type=Path, required=True, help="JSON file to write")
    checking.add_argument("--ids", type=Path, default=OVERLAPPING, help="file to write the ids to that are to go")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.command == "make":
        dropped = () if args.keep_overlapping else OVERLAPPING.read_text(encoding="utf-8").splitlines()
        make(args.data, args.out, dropped=frozenset(dropped), ids=DEVELOPMENT)
    else:
        args.ids.write_text("".join(f"{i}\n" for i in check(args.pairs, args.tasks, args.report)), encoding="utf-8")


if __name__ == "__main__":
    main()
