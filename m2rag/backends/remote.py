"""The model behind an OpenAI-style embedding API: Together, OpenAI, or any other server that speaks it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Generator, Sequence
from typing import Any

from m2rag.backends import BatchTooLargeError, PieceOutput
from m2rag.backends.counting import ByteTokenizer, tokenizer_named
from m2rag.backends.endpoint import Endpoint
from m2rag.backends.exchange import Broken, Reply, RetryPolicy, Send, Steps, Wait, exchange
from m2rag.backends.providers import (
    ASSUMED_MAX_TOKENS,
    KNOWN_MODELS,
    OTHER_CAPS,
    OTHER_KEY_VARIABLE,
    TOGETHER,
    Caps,
    runs_here,
)
from m2rag.backends.wire import (
    AnswerError,
    RequestRule,
    answer_limit,
    read_complaint,
    read_vectors,
    request_body,
)
from m2rag.batching import Piece
from m2rag.errors import RemoteError
from m2rag.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


class RemoteBackend:
    """A model that answers `POST {base_url}/embeddings`.

    Limits are kept before anything is sent: tokens are counted by the model's own tokenizer where it is at hand
    (bert-base-uncased; OpenAI's, if tiktoken is installed and has the vocabulary in its cache), else bounded by bytes,
    which refuses or divides texts that would still have fitted: pass `tokenizer` for a model whose tokenizer you have.

    The API key is in no representation, log message, pickle or fingerprint. An unpickled backend takes it from the
    environment again.

    Args:
        model: the name the provider knows the model by.
        base_url: "https://host/v1", or the name of a known provider: "together" (default), "openai".
        api_key: None: from the environment, TOGETHER_API_KEY or OPENAI_API_KEY for these hosts and for no others,
            M2RAG_API_KEY for all others, if set.
        max_tokens: longest input, special tokens included; None: as known of the model, else 8,192.
        dimensions: ask for vectors of so many; None: the model's own number.
        tokenizer: counts the model's tokens; None: as known of the model, else a bound by bytes.
        caps: what one request may hold; None: as known of the provider.
        concurrency: requests under way at once, for all callers together.
        retry: tries, waits and deadline.

    Raises:
        ValueError: an option is out of its range, or a provider that needs a key has none.
    """

    has_spans = False
    sends_text = True
    matryoshka_dimensions: tuple[int, ...] = ()

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        max_tokens: int | None = None,
        dimensions: int | None = None,
        tokenizer: Tokenizer | None = None,
        caps: Caps | None = None,
        concurrency: int = 4,
        retry: RetryPolicy | None = None,
    ) -> None:
        if not model.strip():
            raise ValueError("model is empty, must be the name that the provider knows the model by")
        if dimensions is not None and dimensions < 1:
            raise ValueError(f"dimensions is {dimensions}, must be at least 1")
        self._endpoint = Endpoint(
            TOGETHER.base_url if base_url is None else base_url,
            "embeddings",
            api_key=api_key,
            key_variable=OTHER_KEY_VARIABLE,
            retry=retry or RetryPolicy(),
            concurrency=concurrency,
        )
        provider = self._endpoint.provider
        known = KNOWN_MODELS.get(model.lower())
        self.model_name = model
        self.source: str | None = None
        self.tokenizer = tokenizer or tokenizer_named(known.tokenizer if known else None)
        self.max_tokens = _limit(model, max_tokens, known.max_tokens if known else None, self.tokenizer)
        self._asked_dimensions = dimensions
        self.dimension = dimensions or (known.dimension if known else None)
        self._caps = caps or (provider.caps if provider else OTHER_CAPS)
        self.batch_rule = RequestRule(self._caps.items, self._caps.bytes)
        self.batch_tokens = self._caps.tokens
        self.concurrency = concurrency
        self._start()

    def _start(self) -> None:
        """What a copy in another process makes anew."""
        self._lock = threading.Lock()
        self._base64 = True
        # Set once the server took anything: from then on a refusal is about what it was sent.
        self._answers = False

    def __repr__(self) -> str:
        key = "set" if self._endpoint.has_key else "none"
        return f"RemoteBackend({self.model_name!r}, base_url={self.base_url!r}, api_key={key})"

    def __getstate__(self) -> dict[str, Any]:
        made_anew = {"_lock", "_base64", "_answers"}
        return {name: value for name, value in vars(self).items() if name not in made_anew}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()

    @property
    def base_url(self) -> str:
        return self._endpoint.base_url

    def identity(self) -> dict[str, str]:
        """Where and by which name the model is served: the weights themselves cannot be seen from here."""
        place = self._endpoint.provider.name if self._endpoint.provider else self._endpoint.host
        return {"remote": place, "model": self.model_name}

    def words(self) -> None:
        """The weights cannot be seen from here."""

    def info(self) -> dict[str, Any]:
        return {
            "backend": "remote",
            "base_url": self.base_url,
            "tokens": "bounded by bytes" if isinstance(self.tokenizer, ByteTokenizer) else "counted",
            "concurrency": self.concurrency,
            "max_items": self._caps.items,
            "max_bytes": self._caps.bytes,
            "deadline_s": self._endpoint.retry.deadline,
        }

    def run(self, batch: Sequence[Piece]) -> list[PieceOutput]:
        return self._endpoint.call(self._embed(batch))

    async def arun(self, batch: Sequence[Piece]) -> list[PieceOutput]:
        return await self._endpoint.acall(self._embed(batch))

    def close(self) -> None:
        """Close the connections that calls of `run` have left open."""
        self._endpoint.close()

    async def aclose(self) -> None:
        """Close those of the running event loop, and those of `run`."""
        await self._endpoint.aclose()

    # The steps of a call, without any waiting in them.

    def _embed(self, batch: Sequence[Piece]) -> Generator[Send | Wait, Reply | Broken | None, list[PieceOutput]]:
        """Vectors of the pieces of one request, in order.

        Raises:
            BatchTooLargeError: the server refused the batch, and it has parts.
            RemoteError: no answer, or a wrong one. `refused` if it is about the one piece that was sent.
        """
        reply = yield from self._ask([piece.text for piece in batch])
        if not _is_good(reply):
            complaint = read_complaint(reply.status, reply.body)
            smaller = "pass smaller caps to RemoteBackend"
            error = self._endpoint.explain(self._place, reply, complaint, instead=self._instead(), smaller=smaller)
            if complaint.about_model or reply.status not in (400, 413, 422):
                raise error
            if not self._answers:
                # Is it the inputs, or would it refuse anything?
                probe = yield from self._ask(["text"])
                if not _is_good(probe):
                    raise error
                self._answers = True
            if len(batch) > 1:
                raise BatchTooLargeError(str(error))
            raise RemoteError(f"input {batch[0].document}: {error}", status=reply.status, refused=True)
        try:
            vectors = read_vectors(reply.data, len(batch))
        except AnswerError as broken:
            raise RemoteError(f"{self._place}: {broken}", status=reply.status) from broken
        self._answers = True
        self._check_dimension(vectors.shape[1])
        return [PieceOutput(vector) for vector in vectors]

    def _ask(self, texts: Sequence[str]) -> Steps:
        """The answer to one request, in base64 if the server knows it."""
        what = f"{self._place} ({len(texts):,} {'input' if len(texts) == 1 else 'inputs'})"
        while True:
            as_base64 = self._base64
            body = request_body(self.model_name, texts, dimensions=self._asked_dimensions, base64=as_base64)
            reply = yield from exchange(body, answer_limit(len(texts)), self._endpoint.retry, self._endpoint.gate, what)
            if _is_good(reply) or not as_base64 or not read_complaint(reply.status, reply.body).about_encoding:
                return reply
            logger.info("%s takes no encoding_format: asking for plain numbers", self._place)
            self._base64 = False

    @property
    def _place(self) -> str:
        return f"{self.model_name} at {self._endpoint.host}"

    def _check_dimension(self, given: int) -> None:
        with self._lock:
            if self.dimension is None:
                self.dimension = given
        if given == self.dimension:
            return
        if self._asked_dimensions:
            raise RemoteError(
                f"{self._place}: asked for {self.dimension} dimensions, it gave {given}: it does not shorten its "
                "vectors, leave dimensions out"
            )
        raise RemoteError(f"{self._place}: vectors of {given} dimensions came, they have {self.dimension}")

    def _instead(self) -> str:
        if runs_here(self.model_name):
            return (
                "The provider may have retired it, as Together did with the M2-BERT models. Use the same weights in "
                f"this process, M2Embedder({self.model_name!r}) without base_url, or base_url of a server that has them"
            )
        return (
            f"The provider may have retired it, or base_url ({self.base_url}) is not the API's. Its models are listed "
            f"at {self.base_url}/models; M2Embedder() without base_url runs the bundled model in this process"
        )


def _limit(model: str, given: int | None, known: int | None, tokenizer: Tokenizer) -> int:
    if given is not None and given < 1:
        raise ValueError(f"max_tokens is {given}, must be at least 1")
    if given is not None and known is not None and given > known:
        raise ValueError(f"max_tokens is {given:,}, {model} takes at most {known:,}")
    if given is None and known is None:
        logger.info(
            "nothing is known of %s: inputs of up to %s tokens are sent%s; pass max_tokens if that is wrong",
            *(model, f"{ASSUMED_MAX_TOKENS:,}", " (bounded by bytes)" if isinstance(tokenizer, ByteTokenizer) else ""),
        )
    return given or known or ASSUMED_MAX_TOKENS


def _is_good(reply: Reply) -> bool:
    return 200 <= reply.status < 300


__all__ = ["Caps", "RemoteBackend", "RetryPolicy"]
