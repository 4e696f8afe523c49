"""The manifest as JSON: what every store keeps beside its vectors, read back with the same care everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from m2rag.errors import StoreError
from m2rag.stores.base import FORMAT, Manifest


def manifest_to_json(manifest: Manifest) -> dict[str, Any]:
    """A manifest as a JSON object."""
    return asdict(manifest)


def manifest_from_json(stored: Any, *, index: str, kept_in: str) -> Manifest:
    """The manifest a store kept; keys it does not know are left alone.

    Args:
        stored: what was read.
        index: the index, as a person would name it.
        kept_in: where the manifest was read from, for the error message.

    Raises:
        StoreError: it is damaged, or was written by a newer version.
    """
    try:
        if not isinstance(stored, Mapping):
            raise TypeError("not an object")
        version = int(stored["format"])
        if version > FORMAT:
            raise StoreError(
                f"the index at {index} has format {version}, written by m2rag {stored.get('m2rag_version')}; "
                f"this version reads up to format {FORMAT}: upgrade m2rag"
            )
        return Manifest(
            fingerprint=str(stored["fingerprint"]),
            dimension=int(stored["dimension"]),
            created=str(stored["created"]),
            m2rag_version=str(stored["m2rag_version"]),
            format=version,
            model=None if stored.get("model") is None else str(stored["model"]),
            lexical=None if stored.get("lexical") is None else str(stored["lexical"]),
            quantization=stored.get("quantization"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{kept_in} is damaged ({error!r}): restore it or build the index anew") from error
