"""Many clients of `m2rag serve` at once: every vector checked, latency by kind of text, memory over time.

    python benchmarks/server_load.py --seconds 180                   # 200 clients on loopback; default: 60 seconds
    python benchmarks/server_load.py --clients 20 --seconds 10

Each client sends its next request as soon as it has the answer to the last. Most send queries, some send documents of a
page or a few, a few send whole long ones; all of them are slices of the demo's documents, whose vectors were computed
before by an embedder in this process. Load and server share the machine's cores. What is reported comes after a minute
of the same load, in which the model has kept what it keeps for each length (384 MB at most).
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
import numpy as np
import psutil
from common import RESULTS, Row, environment, significant, table

from m2rag import M2Embedder
from m2rag.demo import load_documents
from m2rag.server.settings import ServerSettings

KINDS = {  # name: (words, how many different ones, share of the clients)
    "query": ((4, 16), 400, 0.75),
    "pages": ((200, 1_500), 80, 0.20),
    "long": ((5_000, 15_000), 12, 0.05),
}
TOLERANCE = 1e-5
WARM_SECONDS = 60.0
# As long as the server works for a request.
PATIENCE = ServerSettings().timeout


@dataclass
class Tally:
    """What the clients saw."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    tokens: int = 0
    wrong: int = 0
    busy: int = 0
    lost: list[str] = field(default_factory=list)


@contextmanager
def server(*options: str) -> Iterator[tuple[str, psutil.Process]]:
    """`m2rag serve` as a process of its own; gives its address and the process."""
    command = [sys.executable, "-m", "m2rag", "serve", "--port", "0", "--no-page", "--device", "cpu", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        said = ""
        while "Ctrl-C ends it" not in said:
            line = process.stderr.readline()
            if not line:
                raise SystemExit(f"the server did not start: {said}")
            said += line
        yield re.search(r"http://\S+:\d+", said)[0], psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)


def make_texts(seed: int = 0) -> dict[str, list[str]]:
    """Slices of real documents, by kind."""
    draw = random.Random(seed)
    words = [document.text.split() for document in load_documents()]
    texts: dict[str, list[str]] = {}
    for kind, ((fewest, most), count, _) in KINDS.items():
        texts[kind] = []
        while len(texts[kind]) < count:
            length = draw.randint(fewest, most)
            found = draw.choice(words)
            if len(found) > length:
                start = draw.randrange(len(found) - length)
                texts[kind].append(" ".join(found[start : start + length]))
    return texts


async def client(
    number: int, kind: str, texts: list[str], vectors: np.ndarray, http: httpx.AsyncClient, until: float, tally: Tally
) -> None:
    """One client, until the time is up; one in four sends several texts at once."""
    draw = random.Random(number)
    several = 4 if number % 4 == 0 and kind != "long" else 1
    while time.perf_counter() < until:
        chosen = [draw.randrange(len(texts)) for _ in range(several)]
        as_base64 = draw.random() < 0.5
        body = {"model": "m2rag-mini", "input": [texts[i] for i in chosen]}
        started = time.perf_counter()
        try:
            answer = await http.post("/v1/embeddings", json=body | ({"encoding_format": "base64"} if as_base64 else {}))
        except httpx.HTTPError as error:
            tally.lost.append(f"{kind}: {error!r} after {time.perf_counter() - started:.0f} s")
            continue
        if answer.status_code == 429:
            tally.busy += 1
            await asyncio.sleep(float(answer.headers["retry-after"]))
            continue
        tally.seconds[kind].append(time.perf_counter() - started)
        if answer.status_code != 200:
            tally.lost.append(f"{kind}: status {answer.status_code}: {answer.text[:200]}")
            continue
        found = answer.json()
        tally.tokens += found["usage"]["total_tokens"]
        given = [item["embedding"] for item in found["data"]]
        if as_base64:
            given = [np.frombuffer(base64.b64decode(text), dtype="<f4") for text in given]
        right = len(given) == several and np.abs(np.array(given) - vectors[chosen]).max() <= TOLERANCE
        tally.wrong += not right


async def load(address: str, process: psutil.Process, clients: int, seconds: float) -> tuple[Tally, list[float]]:
    """What `clients` clients saw, and the server's memory in MB, once a second."""
    texts = make_texts()
    embedder = M2Embedder(device="cpu")
    vectors = {kind: embedder.embed_documents(some).vectors for kind, some in texts.items()}
    tally, memory = Tally(), []
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=address, timeout=PATIENCE, limits=limits, trust_env=False) as http:
        until = time.perf_counter() + seconds
        tasks = []
        for number in range(clients):
            place = (number + 0.5) / clients
            kind = next(
                k for k, upto in zip(KINDS, np.cumsum([one[2] for one in KINDS.values()]), strict=True) if place < upto
            )
            tasks.append(asyncio.create_task(client(number, kind, texts[kind], vectors[kind], http, until, tally)))
        while time.perf_counter() < until:
            memory.append(process.memory_info().rss / 2**20)
            await asyncio.sleep(1)
        await asyncio.gather(*tasks)
    memory.append(process.memory_info().rss / 2**20)
    return tally, memory


def summary(tally: Tally, memory: list[float], clients: int, seconds: float) -> Row:
    """The figures of one run."""
    row: Row = {"clients": clients, "seconds": seconds}
    for kind, times in tally.seconds.items():
        share = [significant(float(np.percentile(times, p)), 3) if times else None for p in (50, 95, 99)]
        row[kind] = {"requests": len(times), "p50_s": share[0], "p95_s": share[1], "p99_s": share[2]}
    requests = sum(map(len, tally.seconds.values()))
    return row | {
        "requests_per_s": round(requests / seconds, 1),
        "tokens_per_s": round(tally.tokens / seconds),
        "wrong_vectors": tally.wrong,
        "lost": len(tally.lost),
        "busy": tally.busy,
        "memory_mb": {
            "start": round(memory[0]),
            "peak_first_half": round(max(memory[: len(memory) // 2])),
            "peak_second_half": round(max(memory[len(memory) // 2 :])),
            "end": round(memory[-1]),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--dtype", default="float32", help="of the server; vectors are compared with float32")
    parser.add_argument("--out", default=str(RESULTS / "server-load.json"))
    arguments = parser.parse_args()
    with server("--dtype", arguments.dtype) as (address, process):
        asyncio.run(load(address, process, arguments.clients, WARM_SECONDS))
        tally, memory = asyncio.run(load(address, process, arguments.clients, arguments.seconds))
    row = summary(tally, memory, arguments.clients, arguments.seconds)
    with open(arguments.out, "w", encoding="utf-8") as file:
        json.dump({"environment": environment("cpu") | {"cores": os.cpu_count()}, **row}, file, indent=2)
        file.write("\n")
    print(table([{"kind": kind, **row[kind]} for kind in KINDS], ("kind", "requests", "p50_s", "p95_s", "p99_s")))
    for reason in tally.lost:
        print("lost:", reason)
    print(json.dumps({key: value for key, value in row.items() if key not in KINDS}))


if __name__ == "__main__":
    main()
