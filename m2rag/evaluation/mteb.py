"""Our models for mteb (Massive Text Embedding Benchmark, 2.26 or newer): its encoder protocol over `M2Embedder`.

```python
import mteb
from m2rag.evaluation.mteb import MTEBEncoder

results = mteb.evaluate(MTEBEncoder("m2rag-mini"), mteb.get_tasks(["LEMBQMSumRetrieval"]))
```

Needs `pip install 'm2rag[mteb]'`, and Python 3.11 or newer as mteb does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from m2rag._optional import require
from m2rag.embedder import M2Embedder

if TYPE_CHECKING:
    import torch

NO_REVISION = "no_revision_available"  # as mteb calls it


class MTEBEncoder:
    """An encoder as mteb asks for: queries with the query prompt, everything else as documents.

    Texts longer than the model takes are embedded in windows. Blank ones, which some of mteb's corpora hold, have a
    vector of zeros.

    Args:
        model_name: what `M2Embedder` takes as its model, or an embedder.
        revision: what result files say of it; None: the fingerprint of its weights.
        device: as for `M2Embedder`.
        options: of `M2Embedder`.

    Attributes:
        mteb_model_meta: mteb's description of the model; the name in result files is "m2rag/NAME" unless it has an
            owner.
    """

    def __init__(
        self, model_name: str | M2Embedder, revision: str | None = None, *, device: str | None = None, **options: Any
    ) -> None:
        if isinstance(model_name, M2Embedder):
            self.embedder = model_name
        else:
            self.embedder = M2Embedder(model_name, device=device, **options)
        self.mteb_model_meta = model_meta(self.embedder, revision)

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any = None,
        hf_split: str = "",
        hf_subset: str = "",
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """(N, D) float32 of the texts in mteb's batches, `{"text": [...]}` each.

        Args:
            prompt_type: mteb's `PromptType`; "query" for queries. The other arguments make no difference here: an
                embedder sizes its own batches and knows no task.
        """
        texts = [text for batch in inputs for text in batch["text"]]
        said = [number for number, text in enumerate(texts) if text.strip()]
        vectors = np.zeros((len(texts), self.embedder.dimension), dtype=np.float32)
        is_query = getattr(prompt_type, "value", prompt_type) == "query"
        embed = self.embedder.embed_queries if is_query else self.embedder.embed_documents
        vectors[said] = embed([texts[number] for number in said], on_too_long="window").vectors
        return vectors

    def similarity(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:
        """(N, M) cosines of (N, D) and (M, D), as a tensor."""
        return require("mteb.similarity_functions", extra="mteb").cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:
        """(N,) cosines of the rows of (N, D) and (N, D), as a tensor."""
        return require("mteb.similarity_functions", extra="mteb").pairwise_cos_sim(embeddings1, embeddings2)


def model_meta(embedder: M2Embedder, revision: str | None = None) -> Any:
    """mteb's `ModelMeta` of an embedder.

    What it was trained on is left open (`training_datasets=None`), so mteb does not call its results zero-shot: the
    model card of each checkpoint says it.

    Raises:
        MissingDependencyError: mteb is not installed.
    """
    package = require("mteb", extra="mteb")
    info = embedder.info()
    source = embedder.model_source or ""
    owned = re.fullmatch(r"[\w.-]+/[\w.-]+", source) is not None
    weights = re.search(r"\bweights=(\S+)", info["fingerprint"])
    return package.models.ModelMeta.create_empty(
        {
            "name": source if owned else f"m2rag/{embedder.model_name}",
            # Part of the path of a result file, where a colon does not belong.
            "revision": revision or (weights[1].replace(":", "-") if weights else NO_REVISION),
            "languages": ["eng-Latn"],
            "n_parameters": info.get("parameters"),
            "max_tokens": embedder.max_tokens,
            "embed_dim": embedder.dimension,
            "similarity_fn_name": "cosine",
            "framework": ["PyTorch"],
            "use_instructions": False,
        }
    )
