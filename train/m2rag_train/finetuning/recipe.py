"""The recipe of a fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from m2rag_train.recipe import Recipe, RunOptions, check_positive


@dataclass(frozen=True)
class PairSource:
    """Where query-document pairs come from: exactly one of `pairs`, `rows`, `task` and `dataset`.

    Attributes:
        pairs: JSON lines {"query", "document_id", "kind"?}, beside `documents`.
        documents: JSON lines {"_id", "title"?, "text"}.
        rows: JSON lines {"query", "document", "negatives"?: [...]}: everything in the row.
        task: folder in BEIR's layout.
        split: which `qrels/SPLIT.tsv` of the task (null: its `qrels.tsv`), or which split of the dataset.
        dataset: name on the dataset hub or a folder, for `datasets.load_dataset`.
        configuration: of the dataset.
        query, document, negative: its columns; a negative column is optional and may hold texts or lists of texts.
        kinds: only pairs of these kinds.
        share: part of its documents that an epoch takes; the next one goes on with others. 2: each document twice.

    Paths are relative to the data folder, and files may end in `.zst`.
    """

    pairs: str | None = None
    documents: str | None = None
    rows: str | None = None
    task: str | None = None
    split: str | None = "train"
    dataset: str | None = None
    configuration: str | None = None
    query: str = "query"
    document: str = "document"
    negative: str | None = None
    kinds: list[str] | None = None
    share: float = 1.0

    def __post_init__(self) -> None:
        given = [name for name in ("pairs", "rows", "task", "dataset") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"{' and '.join(given) or 'nothing'} given, must be one of pairs, rows, task, dataset")
        if (self.pairs is None) != (self.documents is None):
            raise ValueError("pairs and documents belong together")
        check_positive(self, "share")


@dataclass(frozen=True)
class Negatives:
    """Documents that do not answer a query, besides the other documents of the step.

    Attributes:
        by: "random"; "bm25": ranked high by BM25; "model": ranked high by the base model; "given": those of the data.
        per_document: negatives in each row.
        depth: they are drawn from the best so many of a query's ranking.
        margin: a document whose cosine with the query is above (1 - margin) times the right document's is left out, as
            it may be right too (by "model"); 0: none is left out.
    """

    by: Literal["random", "bm25", "model", "given"] = "random"
    per_document: int = 0
    depth: int = 30
    margin: float = 0.0

    def __post_init__(self) -> None:
        check_positive(self, "depth")
        if self.per_document < 0:
            raise ValueError(f"per_document is {self.per_document}, must be at least 0")
        if not 0 <= self.margin < 1:
            raise ValueError(f"margin is {self.margin}, must be from 0 to below 1")


@dataclass(frozen=True)
class Loss:
    """What is minimised; `losses.py` explains each.

    Attributes:
        name: "orthogonal", "mnrl", or "cached_mnrl": sentence-transformers' own, for comparison.
        form: of the orthogonal loss.
        temperature: of the two others.
        bank: "mnrl": vectors of so many documents of earlier steps are further negatives.
        bank_start: what it holds at first: vectors of the base model, or nothing, which saves embedding all documents.
        bank_queries: so many queries in each batch whose documents are in the bank only: more queries learn from each
            document that is read, from a vector some steps old. Where the bank starts empty, documents read lately.
        cached: "mnrl": one document in memory at a time; without it a step is a quarter faster, if all of them fit.
        dimensions: Matryoshka: the loss is the mean over vectors cut to each of these; the model's own size is added.
        anchor_weight: weight of 1 - cos between each text's vector and its vector by the base model.
        passage_weight: "mnrl" without `cached`: weight of telling a query's passage from the rest of its document, for
            pairs with a `passage`.
    """

    name: Literal["orthogonal", "mnrl", "cached_mnrl"] = "mnrl"
    form: Literal["squared", "absolute"] = "squared"
    temperature: float = 0.05
    bank: int = 0
    bank_start: Literal["base", "empty"] = "base"
    bank_queries: int = 0
    cached: bool = True
    dimensions: list[int] = field(default_factory=list)
    anchor_weight: float = 0.0
    passage_weight: float = 0.0

    def __post_init__(self) -> None:
        check_positive(self, "temperature")
        if min(self.bank, self.bank_queries, self.anchor_weight, self.passage_weight) < 0:
            raise ValueError("bank, bank_queries, anchor_weight and passage_weight must be at least 0")
        if self.passage_weight and (self.name != "mnrl" or self.cached):
            raise ValueError("passage_weight is for the loss 'mnrl' with cached: false")
        if self.bank_queries and not self.bank:
            raise ValueError("bank_queries needs a bank")
        if any(dimension < 1 for dimension in self.dimensions):
            raise ValueError(f"dimensions is {self.dimensions}, must be at least 1 each")
        if self.bank and self.name != "mnrl":
            raise ValueError(f"bank is for the loss 'mnrl', this is {self.name!r}")
        if self.anchor_weight and self.name == "cached_mnrl":
            raise ValueError("anchor_weight is for our own losses, this is 'cached_mnrl'")


@dataclass(frozen=True)
class Evaluation:
    """Retrieval tasks measured on the way: the model with the best mean NDCG@10 is kept.

    Attributes:
        tasks: folders in BEIR's layout.
        every: steps between two measurements.
        patience: measurements without a new best after which training ends; None: it never does.
    """

    tasks: list[str]
    every: int = 50
    patience: int | None = None

    def __post_init__(self) -> None:
        check_positive(self, "every", "patience")
        if not self.tasks:
            raise ValueError("tasks is empty")


@dataclass(frozen=True)
class FinetuneRecipe(Recipe):
    """Fine-tuning of an embedder.

    Attributes:
        base: folder, weights file, bundled name or repository id of the model to start from.
        pooling: instead of the base's own; a checkpoint of pretraining has no pooler and needs "mean".
        max_tokens: longer documents are cut; None: the model's limit.
        max_query_tokens: longer queries are cut.
        queries_per_document: queries in a row, at most.
        every_query: each document has as many rows per epoch as its queries fill; else one, with others each epoch.
        documents: rows in a batch.
        batch_tokens: rows in a batch are of like length, and no more than so many tokens, pads included; `documents` is
            then the most. Without `loss.cached` they go through the model together, so that they share its filters.
        one_source: rows in a batch are of one source: documents of one kind are the harder to tell apart.
        accumulation: batches in a step.
        lr: peak learning rate of matrices and the rest; `embedding_lr` and `filter_lr`: of those, default the same.
        betas, eps, weight_decay: of AdamW; the decay applies to matrices only.
        warmup: fraction of the steps in which the learning rate rises from 0; after it, a cosine to `final_lr` times
            the peak.
        max_grad_norm: the gradient is scaled down to this norm.
        keep: part of the base's weights in the released ones: (1 - keep) * trained + keep * base. A model fine-tuned on
            one kind of text forgets little of others that way (WiSE-FT, arXiv:2109.01903).
        seed: of the order of documents, the draws and the dropout.
        save_every: steps between saved states.
        autocast: matrix products in bfloat16.
        gradient_checkpointing: layers are computed twice, and memory is that of one layer.
        dtype: number format of the released weights.
    """

    name: str
    base: str
    sources: list[PairSource]
    loss: Loss = field(default_factory=Loss)
    negatives: Negatives = field(default_factory=Negatives)
    evaluation: Evaluation | None = None
    pooling: Literal["mean", "mean_tanh", "cls_tanh"] | None = None
    max_tokens: int | None = None
    max_query_tokens: int = 512
    queries_per_document: int = 4
    every_query: bool = False
    documents: int = 2
    batch_tokens: int | None = None
    one_source: bool = False
    accumulation: int = 1
    epochs: int = 1
    lr: float = 1e-4
    embedding_lr: float | None = None
    filter_lr: float | None = None
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    eps: float = 1e-6
    weight_decay: float = 0.01
    warmup: float = 0.06
    final_lr: float = 0.02
    max_grad_norm: float = 1.0
    keep: float = 0.0
    seed: int = 0
    save_every: int = 100
    autocast: bool = True
    gradient_checkpointing: bool = False
    dtype: Literal["float16", "float32"] = "float16"

    def __post_init__(self) -> None:
        check_positive(
            self,
            *("max_tokens", "max_query_tokens", "queries_per_document", "documents", "batch_tokens"),
            *("accumulation", "epochs"),
            *("lr", "embedding_lr", "filter_lr", "eps", "max_grad_norm", "save_every"),
        )
        if not self.sources:
            raise ValueError("sources is empty")
        if len(self.betas) != 2:
            raise ValueError(f"betas has {len(self.betas)} values, must have 2")
        for name in ("warmup", "final_lr", "keep"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, must be from 0 to 1")
        if self.keep == 1:
            raise ValueError("keep is 1: the released weights would be the base's")
        alone = self.documents == 1 and not self.negatives.per_document and not self.loss.bank
        if alone and self.loss.name != "orthogonal":
            raise ValueError(f"documents is 1 and there are no negatives: nothing for {self.loss.name!r} to tell apart")
        if self.loss.name == "cached_mnrl" and self.queries_per_document != 1:
            raise ValueError(f"queries_per_document is {self.queries_per_document}; 'cached_mnrl' takes pairs: 1")

    def run(self, options: RunOptions) -> Path | None:
        """Train from the last saved state, measure, and write the model; see `Recipe.run`."""
        from m2rag_train.finetuning.loop import run

        return run(self, options)
