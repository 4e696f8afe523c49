"""Two hundred clients for a minute (`-m slow`): nothing lost or crossed, memory flat, queries not behind documents."""

from __future__ import annotations

import asyncio

import pytest
import server_load


@pytest.mark.slow
def test_two_hundred_clients_for_a_minute() -> None:
    with server_load.server("--dtype", "float32") as (address, process):
        asyncio.run(server_load.load(address, process, clients=200, seconds=server_load.WARM_SECONDS))
        tally, memory = asyncio.run(server_load.load(address, process, clients=200, seconds=60))
    row = server_load.summary(tally, memory, 200, 60)
    assert (row["wrong_vectors"], row["lost"]) == (0, 0), row
    for kind in server_load.KINDS:
        assert row[kind]["requests"] > 0, row
    # It goes up and down with what is in work; it must not go up and up.
    assert row["memory_mb"]["peak_second_half"] - row["memory_mb"]["peak_first_half"] < 200, row
    # Five of a hundred queries may be slow; all of them together are not behind what takes seconds.
    assert row["query"]["p95_s"] < row["long"]["p50_s"], row
