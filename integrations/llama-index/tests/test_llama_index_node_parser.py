"""`WholeDocumentNodeParser`: documents stay whole, in pipelines and in indexes, where LlamaIndex alone cuts them."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import numpy as np
import pytest
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import ImageDocument, NodeRelationship, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores import SimpleVectorStore

from llama_index.embeddings.m2rag import M2Embedding, TextsNotEmbeddedError, WholeDocumentNodeParser

LONG = "A long document about bread and salt. " * 180  # 1,400 tokens
DOCUMENTS = [Document(text=f"Number {i}. {LONG}", id_=f"doc {i}", metadata={"n": i, "file": "a.txt"}) for i in range(2)]

Run = Callable[..., object]


def test_one_node_for_each_document() -> None:
    nodes = WholeDocumentNodeParser().get_nodes_from_documents(DOCUMENTS)
    assert [node.text for node in nodes] == [document.text for document in DOCUMENTS]
    for node, document in zip(nodes, DOCUMENTS, strict=True):
        assert node.ref_doc_id == document.id_ and node.metadata == document.metadata
        assert (node.start_char_idx, node.end_char_idx) == (0, len(document.text))
        assert str(uuid.UUID(node.node_id)) == node.node_id != document.id_
        assert not {NodeRelationship.PREVIOUS, NodeRelationship.NEXT} & node.relationships.keys()


def test_ids_stay_the_same_and_differ_between_documents() -> None:
    parser = WholeDocumentNodeParser()
    first = [node.node_id for node in parser(DOCUMENTS)]
    assert first == [node.node_id for node in WholeDocumentNodeParser()(DOCUMENTS[::-1])][::-1]
    assert len(set(first)) == 2
    own = WholeDocumentNodeParser(id_func=lambda i, document: f"own-{document.node_id}")
    assert own(DOCUMENTS)[0].node_id == "own-doc 0"


def test_what_is_embedded(embedding: M2Embedding) -> None:
    document = Document(text="Bread.", metadata={"file": "a.txt"}, excluded_embed_metadata_keys=["file"])
    plain = embedding.get_text_embedding("Bread.")
    for parser, expected in (
        (WholeDocumentNodeParser(), plain),
        (WholeDocumentNodeParser(embed_metadata=True), plain),  # the document itself keeps it out
    ):
        np.testing.assert_allclose(embedding(parser([document]))[0].embedding, expected, atol=2e-6)
    [node] = WholeDocumentNodeParser(embed_metadata=True)(DOCUMENTS[:1])
    assert node.get_content("embed").startswith("n: 0\nfile: a.txt")
    [node] = WholeDocumentNodeParser()(DOCUMENTS[:1])
    assert node.get_content("embed") == DOCUMENTS[0].text and "file: a.txt" in node.get_content("llm")
    assert DOCUMENTS[0].excluded_embed_metadata_keys == [], "the document handed in is as it was"


def test_nodes_and_images_stay_as_they_are() -> None:
    parsed = WholeDocumentNodeParser()([TextNode(text="A node."), ImageDocument(text="A picture.")])
    assert [node.get_content() for node in parsed] == ["A node.", "A picture."]
    assert WholeDocumentNodeParser()([]) == []


def test_a_dump_makes_the_same_parser() -> None:
    parser = WholeDocumentNodeParser(embed_metadata=True)
    for found in (
        WholeDocumentNodeParser.from_dict(parser.to_dict()),
        WholeDocumentNodeParser.from_json(parser.to_json()),
    ):
        assert found.embed_metadata and found(DOCUMENTS)[0].node_id == parser(DOCUMENTS)[0].node_id
    assert parser.to_dict()["class_name"] == "WholeDocumentNodeParser"


@pytest.mark.parametrize("way", ["run", "arun"])
@pytest.mark.parametrize("parser", [WholeDocumentNodeParser(), None], ids=["parser", "documents as nodes"])
async def test_pipelines_keep_documents_whole(
    way: str, parser: WholeDocumentNodeParser | None, embedding: M2Embedding
) -> None:
    pipeline = IngestionPipeline(transformations=[parser, embedding] if parser else [embedding])
    nodes = pipeline.run(documents=DOCUMENTS) if way == "run" else await pipeline.arun(documents=DOCUMENTS)
    assert [node.get_content() for node in nodes] == [document.text for document in DOCUMENTS]
    texts = [document.text if parser else document.get_content("embed") for document in DOCUMENTS]
    np.testing.assert_allclose([node.embedding for node in nodes], embedding.get_text_embedding_batch(texts), atol=2e-6)


def test_the_splitter_it_is_there_to_replace() -> None:
    """What happens without: if LlamaIndex stops cutting, this class has no purpose any more."""
    assert len(SentenceSplitter()(DOCUMENTS[:1])) == 2


def test_a_pipeline_with_a_docstore_embeds_changes_only(embedding: M2Embedding) -> None:
    embedded: list[str] = []

    class Counting(M2Embedding):
        def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
            embedded.extend(text[:8] for text in texts)
            return super()._get_text_embeddings(texts)

    pipeline = IngestionPipeline(
        transformations=[WholeDocumentNodeParser(), Counting()],
        docstore=SimpleDocumentStore(),
        docstore_strategy=DocstoreStrategy.UPSERTS,
        vector_store=SimpleVectorStore(),
    )
    documents = [Document(text=f"Number {i}.", id_=str(i)) for i in range(3)]
    assert len(pipeline.run(documents=documents)) == 3
    assert pipeline.run(documents=documents) == []
    [changed] = pipeline.run(documents=[*documents[:2], Document(text="Numbers 2 and 3.", id_="2")])
    assert changed.ref_doc_id == "2" and embedded == ["Number 0", "Number 1", "Number 2", "Numbers "]
    assert len(pipeline.vector_store.data.embedding_dict) == 3  # type: ignore[union-attr]


def test_one_bad_document_is_named(embedding: M2Embedding) -> None:
    documents = [*DOCUMENTS, Document(text="  ", id_="empty")]
    pipeline = IngestionPipeline(transformations=[WholeDocumentNodeParser(), embedding])
    with pytest.raises(TextsNotEmbeddedError, match="1 of 3 texts .*white space"):
        pipeline.run(documents=documents)


def test_index_of_whole_documents(embedding: M2Embedding) -> None:
    index = VectorStoreIndex.from_documents(
        DOCUMENTS, transformations=[WholeDocumentNodeParser()], embed_model=embedding
    )
    found = index.as_retriever(similarity_top_k=9).retrieve("bread and salt")
    assert {hit.node.get_content() for hit in found} == {document.text for document in DOCUMENTS}
    assert len(found) == 2 and index.ref_doc_info.keys() == {"doc 0", "doc 1"}
    index.delete_ref_doc("doc 0", delete_from_docstore=True)
    assert [hit.node.ref_doc_id for hit in index.as_retriever().retrieve("bread")] == ["doc 1"]
