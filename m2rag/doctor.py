"""What this installation has, what it lacks, and what to do about it: the findings of `m2rag doctor`."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from packaging.requirements import Requirement

from m2rag.errors import M2RagError

if TYPE_CHECKING:
    from m2rag.embedder import M2Embedder

State = Literal["ok", "note", "problem"]

_KEYS = ("TOGETHER_API_KEY", "OPENAI_API_KEY", "M2RAG_API_KEY", "QDRANT_API_KEY", "M2RAG_CHAT_API_KEY", "MONGODB_URI")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what.
        state: "ok"; "note", for what can be had and is not there; "problem", for what keeps something from working.
        found: what was seen.
        advice: what to do about it; empty where nothing needs to be done.
    """

    name: str
    state: State
    found: str
    advice: str = ""


def examine(
    model: str | None = None, *, device: str | None = None, index: str | None = None, api_key: str | None = None
) -> Iterator[Finding]:
    """Look at one thing after the other; those that take seconds come last.

    Args:
        model: folder, weights file, bundled name or repository id; None: the bundled checkpoint.
        device: "cpu", "cuda"; None: the GPU if there is one.
        index: folder or URL of an index that should be reachable.
        api_key: of its server.
    """
    yield _python()
    yield from _packages()
    yield from _torch()
    yield _keys()
    embedder: list[M2Embedder] = []
    yield from _guarded("model", lambda: _model(model, device, embedder))
    if index is None:
        yield from _guarded("store", _engine)
    else:
        yield from _guarded("store", lambda: _index(index, api_key, embedder[0] if embedder else None))


def _guarded(name: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """What `look` finds; an error ends it as a problem, with its message for advice."""
    try:
        yield from look()
    except (M2RagError, ImportError, OSError, RuntimeError, ValueError) as error:
        yield Finding(name, "problem", type(error).__name__, str(error))


def _python() -> Finding:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()} ({sys.executable})"
    return Finding("python", "ok", found)


def _packages() -> Iterator[Finding]:
    """This distribution, what it requires, and which extras are complete."""
    try:
        ours = metadata.distribution("m2rag")
    except metadata.PackageNotFoundError:
        yield Finding("m2rag", "problem", "not installed", "run pip install . in its checkout")
        return
    requirements = [Requirement(line) for line in ours.requires or ()]
    missing = [told for one in requirements if _applies(one, "") and (told := _unmet(one))]
    if missing:
        yield Finding("m2rag", "problem", f"{ours.version}: {'; '.join(missing)}", "run pip install . again")
    else:
        yield Finding("m2rag", "ok", ours.version)
    incomplete = {}
    complete = []
    for extra in ours.metadata.get_all("Provides-Extra") or ():
        needed = [one for one in requirements if _applies(one, extra) and not _applies(one, "")]
        lacking = [told for one in needed if one.name != "m2rag" and (told := _unmet(one))]
        if lacking:
            incomplete[extra] = lacking
        else:
            complete.append(extra)
    incomplete.pop("dev", None)
    found = f"installed: {', '.join(sorted(set(complete) - {'dev'})) or 'none'}"
    if incomplete:
        lacks = "; ".join(f"{extra} ({', '.join(lacking)})" for extra, lacking in incomplete.items())
        yield Finding("extras", "note", f"{found}; not: {lacks}", "pip install 'm2rag[EXTRA]' for what you need")
    else:
        yield Finding("extras", "ok", found)


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _unmet(requirement: Requirement) -> str:
    """What is wrong with an installed package, empty if nothing is."""
    name, specifier = requirement.name, requirement.specifier
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return f"{name} is missing"
    return "" if specifier.contains(version, prereleases=True) else f"{name} is {version}, needs {specifier}"


def _torch() -> Iterator[Finding]:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding(
            "torch", "problem", f"{type(error).__name__}: {error}", "install torch again: pytorch.org has how"
        )
        return
    from m2rag.backends.local import cpu_multiplies_bfloat16

    speed = "multiplies bfloat16 fast" if cpu_multiplies_bfloat16() else "has no fast bfloat16, float32 is used"
    yield Finding("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} CPU threads; the CPU {speed}")
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(number)
            found = (
                f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, compute capability {facts.major}.{facts.minor}"
            )
            yield _kernels(f"cuda:{number}", found)
    elif shutil.which("nvidia-smi"):
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for CPUs only"
        advice = (
            "update the NVIDIA driver, or install a torch for an older CUDA"
            if torch.version.cuda
            else "install a CUDA build: pytorch.org has the command"
        )
        yield Finding("gpu", "problem", f"nvidia-smi is here, and this torch ({build}) sees no GPU", advice)
    else:
        yield Finding("gpu", "ok", "none; the model runs on the CPU")


def _kernels(device: str, found: str) -> Finding:
    import torch

    from m2rag_kernels.dispatch import no_triton_reason

    reason = no_triton_reason(torch.device(device))
    if reason is None:
        return Finding("gpu", "ok", f"{found}; Triton kernels")
    advice = (
        "pip install 'm2rag[gpu]'" if importlib.util.find_spec("triton") is None else "it runs on torch.fft, slower"
    )
    return Finding("gpu", "note", f"{found}; no Triton kernels: {reason}", advice)


def _keys() -> Finding:
    there = [name for name in _KEYS if os.environ.get(name)]
    return Finding("keys", "ok", f"in the environment: {', '.join(there) or 'none'}")


def _model(model: str | None, device: str | None, loaded: list[M2Embedder]) -> Iterator[Finding]:
    from m2rag.embedder import M2Embedder

    embedder = M2Embedder(model, device=device, dtype="auto", on_too_long="truncate")
    embedder.embed_query("what is made at first use")
    text = " ".join(["the carrier answers for late arrival of the goods."] * 400)
    started = time.perf_counter()
    result = embedder.embed_documents([text])
    rate = int(result.n_used[0]) / (time.perf_counter() - started)
    facts = embedder.info()
    loaded.append(embedder)
    yield Finding(
        "model",
        "ok",
        f"{embedder.model_name} on {facts['device']}, {facts['kernels']} kernels, {facts['dtype']}: "
        f"{embedder.dimension} dimensions, up to {embedder.max_tokens:,} tokens, {rate:,.0f} tokens/s",
    )


def _engine() -> Iterator[Finding]:
    """Whether Qdrant's engine can make an index in a folder of this machine."""
    import numpy as np

    from m2rag.index import Document, LongDocumentIndex
    from m2rag.results import EmbeddingResult

    class Unit:
        dimension = 4
        fingerprint = "doctor"

        def embed_documents(self, texts: Sequence[str], **options: Any) -> EmbeddingResult:
            ones = np.ones(len(texts), dtype=np.int64)
            return EmbeddingResult(np.eye(len(texts), 4, dtype=np.float32), ones, ones, ones)

        def embed_query(self, text: str) -> np.ndarray:
            return np.eye(1, 4, dtype=np.float32)[0]

    with tempfile.TemporaryDirectory(prefix="m2rag-") as folder:
        with LongDocumentIndex(Path(folder) / "index", Unit()) as index:
            index.add(Document("one", "a document"))
            found = [hit.id for hit in index.search("a document", k=1)]
    if found != ["one"]:
        raise RuntimeError(f"a document that was written was not found: {found}")
    yield Finding("store", "ok", "Qdrant's engine writes and finds in a folder")


def _index(place: str, api_key: str | None, embedder: M2Embedder | None) -> Iterator[Finding]:
    from m2rag.index import read_info

    facts = read_info(place, api_key=api_key)
    found = f"{facts['path']}: {facts['documents']:,} documents, model {facts['model'] or 'unknown'}"
    if embedder is not None and facts["fingerprint"] != embedder.fingerprint:
        advice = (
            f"open it with --model {facts['model']}" if facts["model"] else "give --model the one it was built with"
        )
        yield Finding("store", "problem", f"{found}, which is not {embedder.model_name}", advice)
    else:
        yield Finding("store", "ok", found)
