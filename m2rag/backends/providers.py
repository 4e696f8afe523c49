"""What is known of embedding providers and models: a start, never a condition; every value can be set by the caller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from m2rag.backends.counting import BERT


@dataclass(frozen=True)
class Caps:
    """What one request may hold.

    Attributes:
        items: inputs.
        tokens: tokens of all inputs together.
        bytes: of the body.
    """

    items: int
    tokens: int
    bytes: int

    def __post_init__(self) -> None:
        for name in ("items", "tokens", "bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"caps: {name} is {getattr(self, name)}, must be at least 1")


@dataclass(frozen=True)
class Provider:
    """An embedding API.

    Attributes:
        name: as in `base_url="together"`.
        base_url: its address.
        hosts: all names its hosts have or had; subdomains belong to it too.
        key_variable: environment variable that holds the API key.
        needs_key: whether it answers nobody without one.
        caps: what one request may hold.
    """

    name: str
    base_url: str
    hosts: tuple[str, ...]
    key_variable: str
    needs_key: bool
    caps: Caps


@dataclass(frozen=True)
class KnownModel:
    """A model that may be behind an API.

    Attributes:
        max_tokens: longest input, special tokens included.
        dimension: D of its vectors if none is asked for.
        tokenizer: name for `tokenizer_named`; None: its tokens are bounded by bytes.
        resizable: it gives fewer dimensions on request.
    """

    max_tokens: int
    dimension: int
    tokenizer: str | None = None
    resizable: bool = False


TOGETHER = Provider(
    "together",
    "https://api.together.xyz/v1",
    ("together.xyz", "together.ai"),
    "TOGETHER_API_KEY",
    True,
    # No caps of its embeddings are known: these are modest.
    Caps(items=64, tokens=131_072, bytes=2_000_000),
)
OPENAI = Provider(
    "openai",
    "https://api.openai.com/v1",
    ("openai.com",),
    "OPENAI_API_KEY",
    True,
    Caps(items=2_048, tokens=300_000, bytes=8_000_000),
)
PROVIDERS = (TOGETHER, OPENAI)

# Any other server.
OTHER_CAPS = Caps(items=64, tokens=131_072, bytes=2_000_000)
OTHER_KEY_VARIABLE = "M2RAG_API_KEY"
CHAT_KEY_VARIABLE = "M2RAG_CHAT_API_KEY"

# The limit of most models offered by APIs.
ASSUMED_MAX_TOKENS = 8_192

_M2 = {
    f"{owner}/{name}": KnownModel(tokens, 768, BERT)
    for tokens, names in {
        2_048: ("m2-bert-80m-2k-retrieval", "m2-bert-2k-retrieval-encoder-v1"),
        8_192: ("m2-bert-80m-8k-retrieval", "m2-bert-8k-retrieval-encoder-v1"),
        32_768: ("m2-bert-80m-32k-retrieval", "m2-bert-32k-retrieval-encoder-v1"),
    }.items()
    for owner, name in zip(("togethercomputer", "hazyresearch"), names, strict=True)
}

# By name in lower case.
KNOWN_MODELS: Mapping[str, KnownModel] = {
    **_M2,
    "m2rag-mini": KnownModel(32_768, 384, BERT),
    "text-embedding-3-small": KnownModel(8_191, 1_536, "cl100k_base", resizable=True),
    "text-embedding-3-large": KnownModel(8_191, 3_072, "cl100k_base", resizable=True),
    "text-embedding-ada-002": KnownModel(8_191, 1_536, "cl100k_base"),
    "baai/bge-base-en-v1.5": KnownModel(512, 768, BERT),
    "baai/bge-large-en-v1.5": KnownModel(512, 1_024, BERT),
    "whereisai/uae-large-v1": KnownModel(512, 1_024, BERT),
    "baai/bge-m3": KnownModel(8_192, 1_024),
    "intfloat/multilingual-e5-large-instruct": KnownModel(512, 1_024),
    "alibaba-nlp/gte-modernbert-base": KnownModel(8_192, 768),
}


def provider_of(host: str) -> Provider | None:
    """The provider that runs this host."""
    for provider in PROVIDERS:
        if any(host == name or host.endswith(f".{name}") for name in provider.hosts):
            return provider
    return None


def runs_here(model: str) -> bool:
    """Whether `M2Embedder(model)` can run the same weights in this process."""
    return model.lower() in _M2 or model.lower() == "m2rag-mini"
