"""The real mteb runs our encoder on a task of its own making, without a network."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_models import FakeBackend, sentence

from m2rag import M2Embedder
from m2rag.evaluation.mteb import MTEBEncoder

pytest.importorskip("mteb", reason="mteb is not installed: pip install 'm2rag[mteb]'")


@pytest.fixture(scope="module")
def encoder() -> MTEBEncoder:
    return MTEBEncoder("m2rag-mini", device="cpu")


def test_conforms_to_the_protocol(encoder: MTEBEncoder) -> None:
    from mteb.models import EncoderProtocol, ModelMeta

    assert isinstance(encoder, EncoderProtocol)
    meta = encoder.mteb_model_meta
    assert isinstance(meta, ModelMeta)
    assert (meta.name, meta.max_tokens, meta.embed_dim) == ("m2rag/m2rag-mini", 32768, 384)
    assert meta.n_parameters == encoder.embedder.info()["parameters"]
    assert f"weights={meta.revision.replace('-', ':')}" in encoder.embedder.fingerprint


def test_vectors_are_the_embedder_s_by_role() -> None:
    """Long texts in windows, blank ones as zeros, queries with their prompt, in the order of the batches."""
    embedder = M2Embedder(backend=FakeBackend(), query_prompt="the cat ")
    encoder = MTEBEncoder(embedder, revision="1")
    texts = [sentence(200), " ", "rain fell"]
    batches = [{"text": texts[:1]}, {"text": texts[1:]}]
    documents = encoder.encode(batches, prompt_type="document")
    queries = encoder.encode(batches, prompt_type="query")
    assert documents.shape == (3, 8) and not documents[1].any()
    expected = embedder.embed_documents([texts[0], texts[2]], on_too_long="window").vectors
    assert np.array_equal(documents[[0, 2]], expected)
    assert np.array_equal(queries[2], embedder.embed_query(texts[2]))
    assert not np.allclose(queries[2], documents[2]), "the prompt is in it"
    assert np.allclose(encoder.similarity(documents[:1], documents)[0, [0, 2]], expected[:1] @ expected.T, atol=1e-6)
    assert encoder.encode([], prompt_type="query").shape == (0, 8)


def test_mteb_evaluates_a_retrieval_task(encoder: MTEBEncoder) -> None:
    import mteb
    from datasets import Dataset
    from mteb.abstasks import AbsTaskRetrieval
    from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
    from mteb.abstasks.task_metadata import TaskMetadata

    corpus = {"cat": "The cat sleeps on the sofa.", "rain": "Heavy rain and strong wind.", "blank": " "}
    queries = {"q1": "a kitten naps", "q2": "bad weather"}

    class Tiny(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name="TinyRetrieval",
            description="Two queries over three documents.",
            reference=None,
            dataset={"path": "none", "revision": "1"},
            type="Retrieval",
            category="t2t",
            modalities=["text"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
            date=("2024-01-01", "2024-01-01"),
            domains=[],
            task_subtypes=[],
            license="cc0-1.0",
            annotations_creators="derived",
            dialect=[],
            sample_creation="created",
            bibtex_citation="",
        )

        def load_data(self, num_proc=None, **_) -> None:
            rows = [{"id": key, "title": "", "text": text} for key, text in corpus.items()]
            split = RetrievalSplitData(
                corpus=Dataset.from_list(rows),
                queries=Dataset.from_list([{"id": key, "text": text} for key, text in queries.items()]),
                relevant_docs={"q1": {"cat": 1}, "q2": {"rain": 1}},
                top_ranked=None,
            )
            self.dataset = {"default": {"test": split}}
            self.data_loaded = True

    (result,) = mteb.evaluate(encoder, Tiny(), cache=None, show_progress_bar=False)
    assert result.task_name == "TinyRetrieval"
    assert result.scores["test"][0]["ndcg_at_10"] == 1
