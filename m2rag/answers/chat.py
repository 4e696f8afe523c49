"""`ChatEndpoint`: a chat model behind an OpenAI-style API."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncGenerator, Generator, Iterator, Sequence
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any

import tokenizers

from m2rag.answers.results import Completion, Message
from m2rag.answers.wire import StreamIntake, about_content, about_context, chat_body, completion_limit, read_completion
from m2rag.backends.counting import ByteTokenizer, tokenizer_named
from m2rag.backends.endpoint import Done, Endpoint, Steps
from m2rag.backends.exchange import RetryPolicy, exchange
from m2rag.backends.providers import CHAT_KEY_VARIABLE, OPENAI
from m2rag.backends.wire import AnswerError, read_complaint
from m2rag.errors import ContextTooLongError, InvalidInputError, RemoteError
from m2rag.tokenizer import TextTokenizer, Tokenizer

logger = logging.getLogger(__name__)

BASE_URL_VARIABLE = "M2RAG_CHAT_BASE_URL"
MODEL_VARIABLE = "M2RAG_CHAT_MODEL"
CONTEXT_VARIABLE = "M2RAG_CHAT_CONTEXT_TOKENS"

ASSUMED_CONTEXT_TOKENS = 8_192
"""What most chat models take at least."""

ANSWER_TOKENS = 1_024

# OpenAI's, by the beginning of their names: what a prompt and its answer may have together, and their encoding.
_OPENAI_MODELS = {
    "gpt-5": (272_000, "o200k_base"),
    "gpt-4.1": (1_047_576, "o200k_base"),
    "gpt-4o": (128_000, "o200k_base"),
    "o1": (128_000, "o200k_base"),
    "o3": (200_000, "o200k_base"),
    "o4-mini": (200_000, "o200k_base"),
    "gpt-4-turbo": (128_000, "cl100k_base"),
    "gpt-4": (8_192, "cl100k_base"),
    "gpt-3.5-turbo": (16_385, "cl100k_base"),
}

# Options that some servers refuse; an answer can be had without them.
_OPTIONAL = ("max_tokens", "temperature", "stream_options")

# What a chat's template puts around a message, in tokens: more than any known one needs.
_AROUND_MESSAGE = 16

# A long prompt may take a CPU minutes before the first token comes.
_RETRY = RetryPolicy(timeout=300.0, deadline=900.0)


class ChatEndpoint:
    """A model that answers `POST {base_url}/chat/completions`.

    Tries, waits and deadline are those of remote embeddings. The API key is in no representation, log message or
    pickle; an unpickled endpoint takes it from the environment again. Safe to use from several threads.

    Args:
        model: the name the server knows the model by.
        base_url: "https://host/v1", or the name of a known provider: "openai" (default), "together".
        api_key: None: from the environment, OPENAI_API_KEY or TOGETHER_API_KEY for these hosts and for no others,
            M2RAG_CHAT_API_KEY for all others, if set.
        context_tokens: tokens of prompt and answer together; None: as known of OpenAI's models, else 8,192.
        answer_tokens: at most how many of them the answer has.
        temperature: 0 for the likeliest words; None: as the server has it.
        tokenizer: counts the model's tokens: a `Tokenizer`, or the path of a `tokenizer.json`. None: OpenAI's where
            tiktoken and its vocabulary are at hand, else a bound by bytes, which leaves much of the context empty.
        concurrency: requests under way at once, for all callers together.
        retry: tries, waits and deadline.

    Raises:
        ValueError: an option is out of its range, or a provider that needs a key has none.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        context_tokens: int | None = None,
        answer_tokens: int = ANSWER_TOKENS,
        temperature: float | None = 0.0,
        tokenizer: Tokenizer | str | Path | None = None,
        concurrency: int = 4,
        retry: RetryPolicy | None = None,
    ) -> None:
        if not model.strip():
            raise ValueError("model is empty, must be the name that the server knows the model by")
        if answer_tokens < 1:
            raise ValueError(f"answer_tokens is {answer_tokens}, must be at least 1")
        self._endpoint = Endpoint(
            OPENAI.base_url if base_url is None else base_url,
            "chat/completions",
            api_key=api_key,
            key_variable=CHAT_KEY_VARIABLE,
            retry=retry or _RETRY,
            concurrency=concurrency,
        )
        self.model = model
        of_openai = self._endpoint.provider is OPENAI
        known, encoding = _known(model) if of_openai else (None, None)
        self.context_tokens = context_tokens or known or ASSUMED_CONTEXT_TOKENS
        if self.context_tokens <= answer_tokens:
            raise ValueError(
                f"context_tokens is {self.context_tokens:,}: with answer_tokens={answer_tokens:,} nothing is left for "
                "the question"
            )
        self.answer_tokens = answer_tokens
        self.tokenizer = _tokenizer(tokenizer, encoding)
        # Sent as long as the server takes them. Newer models of OpenAI's know the limit by another name.
        self._options: dict[str, Any] = {"max_completion_tokens" if of_openai else "max_tokens": answer_tokens}
        if temperature is not None:
            self._options["temperature"] = temperature
        # Without it no tokens are counted in a stream.
        self._options["stream_options"] = {"include_usage": True}

    @classmethod
    def from_environment(
        cls, *, model: str | None = None, base_url: str | None = None, context_tokens: int | None = None, **options: Any
    ) -> ChatEndpoint | None:
        """The endpoint that M2RAG_CHAT_MODEL, M2RAG_CHAT_BASE_URL and M2RAG_CHAT_CONTEXT_TOKENS name; None if none.

        Arguments go before variables; `options` are those of the class.

        Raises:
            ValueError: there is a base URL and no model, or an option is out of its range.
        """
        model = model or os.environ.get(MODEL_VARIABLE, "").strip() or None
        base_url = base_url or os.environ.get(BASE_URL_VARIABLE, "").strip() or None
        if model is None:
            if base_url is not None:
                raise ValueError(f"there is a base URL for answers, and no model: set {MODEL_VARIABLE}")
            return None
        if context_tokens is None and (given := os.environ.get(CONTEXT_VARIABLE, "").strip()):
            if not given.isdecimal() or not int(given):
                raise ValueError(f"{CONTEXT_VARIABLE} is {given!r}, must be a number of tokens")
            context_tokens = int(given)
        return cls(model, base_url=base_url, context_tokens=context_tokens, **options)

    def __repr__(self) -> str:
        key = "set" if self._endpoint.has_key else "none"
        return f"ChatEndpoint({self.model!r}, base_url={self.base_url!r}, api_key={key})"

    @property
    def base_url(self) -> str:
        return self._endpoint.base_url

    @property
    def key_variable(self) -> str:
        """Environment variable that its key comes from if none is passed: that of its host and no other."""
        return self._endpoint.key_variable

    @property
    def counts_exactly(self) -> bool:
        """Whether tokens are counted, not bounded by bytes."""
        return not isinstance(self.tokenizer, ByteTokenizer)

    @property
    def prompt_tokens(self) -> int:
        """Tokens that all messages together may have."""
        return self.context_tokens - self.answer_tokens

    def count(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt, counted or bounded, with what the chat's template puts around its messages."""
        texts = [str(message["content"]) for message in messages]
        return int(self.tokenizer.count(texts).sum()) + _AROUND_MESSAGE * (len(texts) + 1)

    def complete(self, messages: Sequence[Message]) -> Completion:
        """What the model says to these messages.

        Raises:
            ContextTooLongError: they are longer than the model takes.
            RemoteError: no answer, a wrong or an empty one.
        """
        return self._endpoint.call(self._steps(messages, live=False))

    async def acomplete(self, messages: Sequence[Message]) -> Completion:
        """As `complete`."""
        return await self._endpoint.acall(self._steps(messages, live=False))

    def stream(self, messages: Sequence[Message]) -> Generator[str | Completion, None, None]:
        """The answer piece by piece as it comes, then all of it; raises what `complete` does.

        An error after the first piece is final: nothing is said twice. Closing the generator ends the request.
        """
        said = 0
        with closing(self._endpoint.run(self._steps(messages, live=True), StreamIntake)) as items:
            for item in items:
                if isinstance(item, Done):
                    yield from _ending(item.value, said)
                else:
                    said += len(item)
                    yield item

    async def astream(self, messages: Sequence[Message]) -> AsyncGenerator[str | Completion, None]:
        """As `stream`; close it (`contextlib.aclosing`) to end the request early."""
        said = 0
        async with aclosing(self._endpoint.arun(self._steps(messages, live=True), StreamIntake)) as items:
            async for item in items:
                if isinstance(item, Done):
                    for last in _ending(item.value, said):
                        yield last
                else:
                    said += len(item)
                    yield item

    def close(self) -> None:
        """Close the connections that calls in threads have left open."""
        self._endpoint.close()

    async def aclose(self) -> None:
        """Close those of the running event loop, and those of threads."""
        await self._endpoint.aclose()

    # The steps of a call, without any waiting in them.

    def _steps(self, messages: Sequence[Message], *, live: bool) -> Steps[Completion]:
        limit = completion_limit(self.answer_tokens)
        while True:
            options = {"stream": True, **self._options} if live else dict(self._options)
            if not live:
                options.pop("stream_options", None)
            body = chat_body(self.model, messages, options)
            reply = yield from exchange(body, limit, self._endpoint.retry, self._endpoint.gate, self._place)
            if 200 <= reply.status < 300:
                break
            complaint = read_complaint(reply.status, reply.body)
            if about_context(reply.status, complaint):
                raise ContextTooLongError(
                    f"{self._place}: the prompt is longer than it takes ({complaint.message}): "
                    f"pass a smaller context_tokens than {self.context_tokens:,}",
                    status=reply.status,
                )
            if about_content(reply.status, complaint):
                raise RemoteError(
                    f"{self._place}: its content filter refused the question or the sources ({complaint.message})",
                    status=reply.status,
                )
            if reply.status not in (400, 422) or not self._can_do_without(reply.body, options):
                smaller = "pass a smaller context_tokens"
                raise self._endpoint.explain(self._place, reply, complaint, instead=self._instead, smaller=smaller)
        try:
            completion = read_completion(reply.data)
        except AnswerError as broken:
            raise RemoteError(f"{self._place}: {broken}", status=reply.status) from broken
        if not completion.text.strip():
            raise RemoteError(f"{self._place}: {self._silence(completion.finish)}", status=reply.status)
        return completion

    def _can_do_without(self, refusal: bytes, sent: dict[str, Any]) -> bool:
        """Leave out, or rename, the option that a refusal names; False if it names none that can be."""
        said = refusal[:2_000].decode("latin-1")
        named = next((name for name in _OPTIONAL if name in sent and name in said), "")
        if named in self._options:  # else another request has met this in the meantime
            options = dict(self._options)
            value = options.pop(named)
            if named == "max_tokens":
                if "max_completion_tokens" not in said:
                    return False
                options["max_completion_tokens"] = value
            logger.info("%s takes no %s", self._place, named)
            self._options = options
        return bool(named)

    def _silence(self, finish: str) -> str:
        if finish == "content_filter":
            return "its content filter kept the answer back"
        if finish == "length":
            return f"{self.answer_tokens:,} tokens came without an answer: pass more answer_tokens"
        return f"the answer is empty (finish_reason {finish!r})"

    @property
    def _place(self) -> str:
        return f"{self.model} at {self._endpoint.host}"

    @property
    def _instead(self) -> str:
        return (
            f"Its provider may have retired it, or base_url ({self.base_url}) is not the API's: its models are listed "
            f"at {self.base_url}/models"
        )


def _ending(completion: Completion, said: int) -> Iterator[str | Completion]:
    """What was not handed on yet, as from a server that does not stream, and all of it."""
    if len(completion.text) > said:
        yield completion.text[said:]
    yield completion


def _known(model: str) -> tuple[int | None, str | None]:
    names = [name for name in _OPENAI_MODELS if model.lower().startswith(name)]
    return _OPENAI_MODELS[max(names, key=len)] if names else (None, None)


def _tokenizer(given: Tokenizer | str | Path | None, encoding: str | None) -> Tokenizer:
    if given is None:
        return tokenizer_named(encoding)
    if not isinstance(given, (str, Path)):
        return given
    try:
        return TextTokenizer(tokenizers.Tokenizer.from_str(Path(given).read_text(encoding="utf-8")))
    # The library has no exception class of its own: everything it refuses is a bare Exception.
    except Exception as error:
        raise InvalidInputError(f"{given}: not a tokenizer.json ({error})") from error


__all__ = ["ChatEndpoint"]
