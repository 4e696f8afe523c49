"""From end to end on real long documents: index, be killed, go on, query, filter, delete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from real_documents import long_documents
from support.killed import kill_once_done

from llama_index.embeddings.m2rag import M2Embedding, M2LongDocumentRetriever
from m2rag import LongDocumentIndex
from m2rag.demo import QUESTIONS

EASY = ("Which module reads and writes tables of values with commas between them?", "pep-0305")
HERE = Path(__file__).parent


@pytest.mark.parametrize(
    "n, where",
    [
        (4, "folder"),
        pytest.param(40, "folder", marks=pytest.mark.slow),
        pytest.param(40, "server", marks=pytest.mark.slow),
    ],
)
def test_index_kill_resume_query_filter_delete(
    n: int, where: str, request: pytest.FixtureRequest, embedding: M2Embedding, tmp_path: Path
) -> None:
    location = str(tmp_path / "index") if where == "folder" else request.getfixturevalue("collection_url")
    documents = long_documents(n)
    kill_once_done([str(HERE / "kill_worker.py"), location, str(n)], 2)

    state: list[Any] = []
    with LongDocumentIndex(location, embedding.embedder) as index:
        n_there = len(index)
        assert 2 <= n_there < n, "what was reported as stored is there, and it was killed in the middle"
        report = M2LongDocumentRetriever(index).add_documents(documents, progress=state.append)
        assert (report.unchanged, report.added, report.failed) == (n_there, n - n_there, [])
        assert 0 < state[-1].tokens < index.info()["tokens"], "what was there was not embedded again"
        assert index.ids() == sorted(document.id_ for document in documents)

        texts = {document.id_: document.text for document in documents}
        asked = [(question, id) for question, id in [*QUESTIONS, EASY] if id in texts]
        for question, id in asked:
            found = M2LongDocumentRetriever(index, similarity_top_k=3).retrieve(question)
            assert id in [hit.node_id for hit in found]
            assert all(hit.text == texts[hit.node_id] for hit in found), "all of the text, as it was"
            for hit in M2LongDocumentRetriever(index, returns="passages").retrieve(question):
                assert hit.text == texts[hit.node.ref_doc_id][hit.node.start_char_idx : hit.node.end_char_idx]

        only = M2LongDocumentRetriever(index, similarity_top_k=n, filters={"pep": documents[0].metadata["pep"]})
        assert [hit.node_id for hit in only.retrieve("Python")] == [documents[0].id_]
        assert index.delete(documents[0].id_) == 1 and only.retrieve("Python") == [] and len(index) == n - 1
