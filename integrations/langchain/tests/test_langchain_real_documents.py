"""From end to end on real long documents: index, be killed, go on, query, filter, delete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from real_documents import long_documents
from support.killed import kill_once_done

from langchain_m2rag import M2Embeddings, M2LongDocumentRetriever, M2QdrantVectorStore
from m2rag.demo import QUESTIONS

EASY = ("Which module reads and writes tables of values with commas between them?", "pep-0305")
HERE = Path(__file__).parent


@pytest.mark.parametrize(
    "n, where",
    [
        (4, "folder"),
        pytest.param(40, "folder", marks=pytest.mark.slow),
        pytest.param(40, "url", marks=pytest.mark.slow),
    ],
)
def test_index_kill_resume_query_filter_delete(
    n: int, where: str, request: pytest.FixtureRequest, embeddings: M2Embeddings, tmp_path: Path
) -> None:
    location = str(tmp_path / "index") if where == "folder" else request.getfixturevalue("collection_url")
    documents = long_documents(n)
    kill_once_done([str(HERE / "kill_worker.py"), location, str(n)], 2)

    state: list[Any] = []
    with M2QdrantVectorStore(location, embeddings) as store:
        n_there = len(store.index)
        assert 2 <= n_there < n, "what was reported as stored is there, and it was killed in the middle"
        assert store.add_documents(documents, progress=state.append) == [document.id for document in documents]
        assert 0 < state[-1].tokens < store.index.info()["tokens"], "what was there was not embedded again"
        assert sorted(store.index.ids()) == sorted(document.id or "" for document in documents)
        assert store.get_by_ids([documents[-1].id or ""]) == [documents[-1]], "all of the text, as it was"

        retriever = M2LongDocumentRetriever(index=store.index, k=3)
        texts = {document.id: document.page_content for document in documents}
        asked = [(question, id) for question, id in [*QUESTIONS, EASY] if id in texts]
        first_three = 0
        for question, id in asked:
            found = retriever.invoke(question)
            first_three += id in [one.id for one in found]
            for passage in retriever.invoke(question, returns="passages"):
                start, end = passage.metadata["start_index"], passage.metadata["end_index"]
                assert passage.page_content == texts[passage.metadata["document_id"]][start:end]
        assert first_three == len(asked)

        only = {"pep": documents[0].metadata["pep"]}
        assert store.similarity_search("Python", k=n, filter=only) == [documents[0]]
        assert store.delete([documents[0].id or ""]) and store.similarity_search("Python", k=n, filter=only) == []
        assert len(store.index) == n - 1
