"""`M2Embedder`: texts in, vectors out, with what was done to each text."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from m2rag.backends import Backend, BatchTooLargeError
from m2rag.errors import InvalidInputTypeError, RemoteError
from m2rag.job import TOO_LONG, EmbeddingJob, JobSettings
from m2rag.lanes import arun_lanes, run_lanes
from m2rag.progress import embedding_progress
from m2rag.results import EmbeddingResult, PassageVectors
from m2rag.words import WordVectors

PRECISIONS = ("float32", "float16", "int8", "binary")

OnBatch = Callable[[int, int], None]

# What a backend may raise and a job can deal with.
_OUTCOMES: tuple[type[BatchTooLargeError | RemoteError], ...] = (BatchTooLargeError, RemoteError)


class M2Embedder:
    """One vector per text, made from all of it.

    Vectors are (N, D) by `precision`:

    - `"float32"`, `"float16"`: (N, D);
    - `"int8"`: (N, D), the normalised vector times 127, rounded;
    - `"binary"`: (N, ceil(D / 8)) uint8, one bit per dimension (1 where it is positive), first dimension in the
      highest bit, as `numpy.packbits` does.

    The model runs in this process, or behind an OpenAI-style API if `base_url` or `api_key` is given: the same object
    but for passages (`has_passages`). One embedder may be used by several threads at once.

    Args:
        model: folder, weights file, bundled name or repository id; None: the bundled checkpoint. Only a repository id
            makes use of the network. With `base_url` or `api_key`: the name the provider knows the model by.
        device: "cpu", "cuda", "cuda:1"; None: the GPU if there is one.
        dtype: "float32", "bfloat16" or "auto": number format of the model's matrix products.
        kernels: "auto", "naive" or "cpu": implementation of the model's operations.
        max_tokens: a lower limit than the model's, special tokens and prompt included. For a remote model that this
            library knows nothing of, its limit (8,192 if not given).
        on_too_long: what becomes of longer inputs. "error": `InputTooLongError`. "truncate": the first `max_tokens`
            count, `result.truncated` says so. "window": windows of full length that overlap by an eighth, mean of
            their raw vectors weighted by their tokens.
        normalize: scale vectors to length 1.
        dimensions: keep the first ones only, where the checkpoint was trained for that (Matryoshka); a remote model is
            asked for so many.
        precision: "float32", "float16", "int8" or "binary".
        batch_tokens: padded tokens per batch, or tokens per request; None: by device, or by provider.
        query_prompt: text in front of every query; it is tokenised by itself.
        document_prompt: text in front of every document, and of every window of one.
        show_progress: draw a bar on standard error.
        base_url: where the API is: "https://host/v1", or "together" or "openai". None with an `api_key`: Together.
        api_key: None: from the environment: TOGETHER_API_KEY, OPENAI_API_KEY, for other hosts M2RAG_API_KEY, if set.
        backend: a backend built elsewhere, instead of `model`, `device`, `dtype`, `kernels`, `base_url` and `api_key`;
            `RemoteBackend` has the options of retries, caps and concurrency.

    Raises:
        CheckpointError: no checkpoint there, or not a sound one.
        ValueError: an option is out of its range; names it and both numbers.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        device: str | None = None,
        dtype: str = "float32",
        kernels: str = "auto",
        max_tokens: int | None = None,
        on_too_long: str = "error",
        normalize: bool = True,
        dimensions: int | None = None,
        precision: str = "float32",
        batch_tokens: int | None = None,
        query_prompt: str = "",
        document_prompt: str = "",
        show_progress: bool = False,
        base_url: str | None = None,
        api_key: str | None = None,
        backend: Backend | None = None,
    ) -> None:
        _check_choice("on_too_long", on_too_long, TOO_LONG)
        _check_choice("precision", precision, PRECISIONS)
        if precision == "int8" and not normalize:
            raise ValueError("precision='int8' covers -1 to 1 only: it needs normalize=True")
        if batch_tokens is not None and batch_tokens < 1:
            raise ValueError(f"batch_tokens is {batch_tokens}, must be at least 1")
        remote = base_url is not None or api_key is not None
        if backend is not None:
            if model is not None or remote:
                raise ValueError("give model, base_url and api_key, or backend, not both")
        elif remote:
            if device is not None or kernels != "auto":
                raise ValueError("device and kernels are for a model in this process: leave them out with base_url")
            from m2rag.backends.remote import RemoteBackend

            backend = RemoteBackend(
                _remote_name(model),
                base_url=base_url,
                api_key=api_key,
                max_tokens=max_tokens,
                dimensions=dimensions,
            )
        else:
            # Imported here: a remote backend needs no torch.
            from m2rag.backends.local import LocalBackend

            backend = LocalBackend.load(model, device=device, dtype=dtype, kernels=kernels)
        self._backend: Backend = backend
        self._max_tokens = self._checked_limit(max_tokens)
        # None: as many as the backend gives.
        self._dimensions = self._checked_dimensions(dimensions)
        self._on_too_long = on_too_long
        self._normalize = normalize
        self._precision = precision
        self._batch_tokens = batch_tokens or backend.batch_tokens
        self._query_prompt = query_prompt
        self._document_prompt = document_prompt
        self._show_progress = show_progress

    def __repr__(self) -> str:
        dimension = self._dimensions or self._backend.dimension
        return f"M2Embedder({self.model_name!r}, dimension={dimension}, max_tokens={self.max_tokens})"

    @property
    def model_name(self) -> str:
        """The name the model was loaded by; for a path its last part."""
        return self._backend.model_name

    @property
    def model_source(self) -> str | None:
        """What loads this model again: absolute path, bundled name or repository id; None where unknown."""
        return self._backend.source

    @property
    def dimension(self) -> int:
        """D, dimensions of a vector (bits, for binary precision).

        A remote model that this library does not know is asked for one vector, if it has not given any yet.

        Raises:
            RemoteError: it does not answer.
        """
        if self._dimensions is None and self._backend.dimension is None:
            self._run(self._probe())
        return cast("int", self._dimensions or self._backend.dimension)

    @property
    def max_tokens(self) -> int:
        """Longest input that is embedded at once, special tokens included."""
        return self._max_tokens

    @property
    def has_passages(self) -> bool:
        """Whether passages can be had: they need the model's hidden states, which no remote model gives."""
        return self._backend.has_spans

    @property
    def word_vectors(self) -> WordVectors | None:
        """What the model's embedding layer holds of the words of its vocabulary, made anew each time.

        None for a remote model, and for one whose tokens are not words and parts of words.
        """
        return self._backend.words()

    @property
    def fingerprint(self) -> str:
        """What another embedder must share for its vectors to be comparable with this one's.

        Weights, tokenizer, padding, pooling, dimensions, normalisation, precision and document prompt. Not part of it:
        the model's name and place, device, number format of the products, batch size, the query prompt (it changes
        what is asked, not what is stored) and the length policy (a window's vector lies in the same space).
        """
        parts = {
            **self._backend.identity(),
            "dimensions": str(self.dimension),
            "normalize": str(self._normalize).lower(),
            "precision": self._precision,
            "document_prompt": repr(self._document_prompt),
        }
        return " ".join(f"{key}={value}" for key, value in parts.items())

    def close(self) -> None:
        """Close the connections of a remote model, if there are any. It can be used again."""
        self._backend.close()

    async def aclose(self) -> None:
        """As `close`, for the connections of the running event loop too."""
        await self._backend.aclose()

    def info(self) -> dict[str, Any]:
        """Model, device, number formats, limits and fingerprint, ready for JSON."""
        return {
            "model": self.model_name,
            **self._backend.info(),
            "dimension": self.dimension,
            "max_tokens": self._max_tokens,
            "on_too_long": self._on_too_long,
            "normalize": self._normalize,
            "precision": self._precision,
            "batch_tokens": self._batch_tokens,
            "fingerprint": self.fingerprint,
        }

    def count_tokens(self, texts: Iterable[str]) -> np.ndarray:
        """(N,) int64: length of each text in tokens, special tokens included, prompts not.

        Raises:
            InvalidInputTypeError: a text is not a `str`.
        """
        items = _as_list(texts)
        for index, text in enumerate(items):
            if not isinstance(text, str):
                raise InvalidInputTypeError(f"input {index} is a {type(text).__name__}, must be a str")
        return self._backend.tokenizer.count(items)

    def embed_documents(
        self,
        texts: Iterable[str],
        *,
        on_too_long: str | None = None,
        on_error: str = "raise",
        passages: bool = False,
        passage_tokens: int = 256,
        show_progress: bool | None = None,
        on_batch: OnBatch | None = None,
    ) -> EmbeddingResult:
        """Vectors of documents, in their order.

        Args:
            texts: list, tuple or generator of `str`, or of `TokenIds` for texts that the model's own tokenizer has
                tokenised already; no texts give vectors (0, D).
            on_too_long: instead of the embedder's own policy.
            on_error: "raise" at the first bad input, or "skip" it: its row is zeros and its error is in
                `result.errors`.
            passages: also give the vectors of the documents' passages, from the same forward pass.
            passage_tokens: about how long a passage is.
            show_progress: instead of the embedder's own setting.
            on_batch: called after each batch with (documents finished, tokens done) in that batch.

        Raises:
            InvalidInputTypeError: `texts` is a single `str`, or an item is not a `str`.
            InvalidInputError: an item is empty, only white space or control characters.
            InputTooLongError: an item exceeds `max_tokens` under `on_too_long="error"`.
            OutOfMemoryError: one item alone does not fit into the device's memory.
            NonFiniteError: the model gave NaN or infinity.
            RemoteError: the remote model failed, under `on_error="skip"` too; what was obtained is in its `result`.
            ValueError: `passages` of a remote model.
        """
        request = self._documents(texts, on_too_long, on_error, passages, passage_tokens, show_progress, on_batch)
        return self._run(request)

    async def aembed_documents(
        self,
        texts: Iterable[str],
        *,
        on_too_long: str | None = None,
        on_error: str = "raise",
        passages: bool = False,
        passage_tokens: int = 256,
        show_progress: bool | None = None,
        on_batch: OnBatch | None = None,
    ) -> EmbeddingResult:
        """As `embed_documents`; the event loop stays free."""
        request = self._documents(texts, on_too_long, on_error, passages, passage_tokens, show_progress, on_batch)
        return await self._arun(request)

    def embed_queries(
        self, texts: Iterable[str], *, on_too_long: str | None = None, on_error: str = "raise"
    ) -> EmbeddingResult:
        """Vectors of queries (the query prompt in front of each). Arguments and errors as in `embed_documents`."""
        return self._run(self._queries(texts, on_too_long, on_error))

    async def aembed_queries(
        self, texts: Iterable[str], *, on_too_long: str | None = None, on_error: str = "raise"
    ) -> EmbeddingResult:
        """As `embed_queries`; the event loop stays free."""
        return await self._arun(self._queries(texts, on_too_long, on_error))

    def embed_query(self, text: str, *, on_too_long: str | None = None) -> np.ndarray:
        """Vector of one query: (D,)."""
        return self.embed_queries([text], on_too_long=on_too_long).vectors[0]

    async def aembed_query(self, text: str, *, on_too_long: str | None = None) -> np.ndarray:
        """As `embed_query`; the event loop stays free."""
        return (await self.aembed_queries([text], on_too_long=on_too_long)).vectors[0]

    def embed_passages(self, text: str, *, passage_tokens: int = 256, on_too_long: str | None = None) -> PassageVectors:
        """Contextual vectors of the passages of one document, each made in sight of all of it.

        A passage's vector is the mean of the encoder's last hidden states over its tokens, whatever the pooling of the
        document's own vector; a lexical sketch counts less in it than in a document's. Passages have about
        `passage_tokens` tokens and end where a paragraph, a sentence or at least a word ends; together they hold all of
        the text (under "truncate": of its beginning) but white space between them. Errors as in `embed_documents`.
        """
        result = self.embed_documents([text], passages=True, passage_tokens=passage_tokens, on_too_long=on_too_long)
        return _only_passages(result)

    async def aembed_passages(
        self, text: str, *, passage_tokens: int = 256, on_too_long: str | None = None
    ) -> PassageVectors:
        """As `embed_passages`; the event loop stays free."""
        result = await self.aembed_documents(
            [text], passages=True, passage_tokens=passage_tokens, on_too_long=on_too_long
        )
        return _only_passages(result)

    def _documents(
        self,
        texts: Iterable[str],
        on_too_long: str | None,
        on_error: str,
        passages: bool,
        passage_tokens: int,
        show_progress: bool | None,
        on_batch: OnBatch | None,
    ) -> _Request:
        if passages and not self._backend.has_spans:
            raise ValueError(
                f"{self.model_name} gives one vector per input and no passages: they need its hidden states, so a "
                "model in this process. Leave passages out (embedder.has_passages says whether there are any)"
            )
        settings = self._settings(self._document_prompt, on_too_long, on_error, passage_tokens if passages else None)
        show = self._show_progress if show_progress is None else show_progress
        return _Request(_as_list(texts), settings, show, on_batch)

    def _queries(self, texts: Iterable[str], on_too_long: str | None, on_error: str) -> _Request:
        return _Request(_as_list(texts), self._settings(self._query_prompt, on_too_long, on_error, None))

    def _settings(self, prompt: str, on_too_long: str | None, on_error: str, passage_tokens: int | None) -> JobSettings:
        return JobSettings(
            tokenizer=self._backend.tokenizer,
            max_tokens=self._max_tokens,
            batch_tokens=self._batch_tokens,
            batch_rule=self._backend.batch_rule,
            finish=self._finish,
            sends_text=self._backend.sends_text,
            prompt=prompt,
            on_too_long=self._on_too_long if on_too_long is None else on_too_long,
            on_error=on_error,
            passage_tokens=passage_tokens,
        )

    def _probe(self) -> _Request:
        """A request that tells the backend its dimension."""
        return _Request(["dimension"], self._settings("", "truncate", "raise", None))

    def _run(self, request: _Request) -> EmbeddingResult:
        job = EmbeddingJob(request.texts, request.settings)
        backend = self._backend
        with request.following(job) as advance:
            for batch, outcome in run_lanes(job.next_batch, backend.run, backend.concurrency, _OUTCOMES):
                advance(*job.settle(batch, outcome))
        if not job.has_vectors and not job.failed and backend.dimension is None:
            self._run(self._probe())
        return job.result(backend.dimension)

    async def _arun(self, request: _Request) -> EmbeddingResult:
        job = await asyncio.to_thread(EmbeddingJob, request.texts, request.settings)
        backend = self._backend
        lanes = arun_lanes(job.next_batch, backend.arun, backend.concurrency, _OUTCOMES)
        with request.following(job) as advance:
            async with aclosing(lanes):
                async for batch, outcome in lanes:
                    advance(*job.settle(batch, outcome))
        if not job.has_vectors and not job.failed and backend.dimension is None:
            await self._arun(self._probe())
        return job.result(backend.dimension)

    def _finish(self, vectors: np.ndarray) -> np.ndarray:
        """Raw vectors (N, D) -> cut, normalised, in the wanted precision."""
        vectors = vectors[:, : self._dimensions]
        if self._normalize:
            norms = np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors = vectors / np.maximum(norms, np.finfo(np.float32).tiny)
        if self._precision == "int8":
            return np.rint(vectors * 127).astype(np.int8)
        if self._precision == "binary":
            return np.packbits(vectors > 0, axis=1)
        return np.ascontiguousarray(vectors, dtype=self._precision)

    def _checked_limit(self, max_tokens: int | None) -> int:
        limit = self._backend.max_tokens
        if max_tokens is None:
            return limit
        if max_tokens > limit:
            raise ValueError(f"max_tokens is {max_tokens:,}, {self.model_name} takes at most {limit:,}")
        if max_tokens < 1:
            raise ValueError(f"max_tokens is {max_tokens}, must be at least 1")
        return max_tokens

    def _checked_dimensions(self, dimensions: int | None) -> int | None:
        full = self._backend.dimension
        if dimensions is None or dimensions == full:
            return full
        if full is None:
            raise ValueError(f"the backend asks for {self.model_name}'s own dimension: give it dimensions={dimensions}")
        trained = self._backend.matryoshka_dimensions
        if not trained:
            raise ValueError(
                f"dimensions is {dimensions}, {self.model_name} was not trained for fewer than its {full} "
                "(its configuration has no matryoshka_dimensions)"
            )
        if dimensions not in trained:
            allowed = ", ".join(map(str, sorted({*trained, full})))
            raise ValueError(f"dimensions is {dimensions}, {self.model_name} was trained for {allowed}")
        return dimensions


@dataclass(frozen=True)
class _Request:
    """A checked call: what to embed, how, and whom to tell."""

    texts: list[Any]
    settings: JobSettings
    show_progress: bool = False
    on_batch: OnBatch | None = None

    @contextmanager
    def following(self, job: EmbeddingJob) -> Iterator[OnBatch]:
        bar = embedding_progress("Embedding", job.total_docs, job.total_tokens, show=self.show_progress)
        with bar as advance:

            def tell(docs: int, tokens: int) -> None:
                advance(docs, tokens)
                if self.on_batch is not None:
                    self.on_batch(docs, tokens)

            yield tell


def _as_list(texts: Iterable[str]) -> list[Any]:
    if isinstance(texts, str):
        raise InvalidInputTypeError(
            "texts is a single str, it must be a list of str: wrap it in [...], or use embed_query for a query"
        )
    if isinstance(texts, (bytes, bytearray)) or not isinstance(texts, Iterable):
        raise InvalidInputTypeError(f"texts is a {type(texts).__name__}, must be an iterable of str")
    return list(texts)


def _remote_name(model: str | Path | None) -> str:
    if not isinstance(model, str):
        raise ValueError(f"model is {model!r}, must be the name that the provider at base_url knows the model by")
    return model


def _only_passages(result: EmbeddingResult) -> PassageVectors:
    return cast("list[PassageVectors]", result.passages)[0]


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}, must be one of {', '.join(map(repr, allowed))}")
