"""`add_with_ray` into Atlas: workers in processes of their own write what one process would."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import fake_embedder
import pytest
from conftest import Doc
from fake_embedder import HashEmbedder
from pymongo.database import Database
from support.collection_cases import DOCUMENTS, document
from support.local_ray import local_ray

from m2rag.index import LongDocumentIndex
from m2rag.index.documents import point_id
from m2rag.index.on_ray import add_with_ray
from m2rag.stores import open_store

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning", "default::ResourceWarning"),
]
FIELDS = ("id", "title", "text", "metadata", "hash", "n_tokens", "starts", "ends")


@pytest.fixture
def ray() -> Iterator[Any]:
    with local_ray(fake_embedder) as (ray, _):
        yield ray


def test_the_same_as_by_one_process(ray: Any, mongodb_uri: str, database: Database[Doc]) -> None:
    base, _, options = mongodb_uri.partition("/?")
    urls = [f"{base}/{database.name}/{name}?{options}" for name in ("ray", "one")]
    settings: Any = {"embedder": HashEmbedder, "batch_tokens": 100, "actors": 2, "cpus_per_actor": 0.5}
    report = add_with_ray(urls[0], DOCUMENTS, **settings)
    assert (report.added, report.failed) == (len(DOCUMENTS), [])
    changed = [document(0, " Changed."), *DOCUMENTS[1:]]
    report = add_with_ray(urls[0], changed, **settings)
    assert (report.replaced, report.unchanged) == (1, len(DOCUMENTS) - 1)
    with LongDocumentIndex(urls[1], HashEmbedder()) as index:
        index.add(changed)
        names = index.ids()
        expected = [hit.id for hit in index.search("only3", 5)]
    with LongDocumentIndex(urls[0], HashEmbedder()) as index:
        assert [hit.id for hit in index.search("only3", 5)] == expected
    found = []
    for url in urls:
        store = open_store(url)
        found.append(store.retrieve([point_id(id) for id in names], payload=FIELDS, vectors=("doc", "passages")))
        assert store.count() == len(DOCUMENTS)
        store.close()
    left, right = found
    assert left.keys() == right.keys()
    for id, point in left.items():
        assert point.payload == right[id].payload
        assert all((vector == right[id].vectors[name]).all() for name, vector in point.vectors.items())
