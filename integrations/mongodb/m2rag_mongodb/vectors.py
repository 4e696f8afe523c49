"""Vectors as BSON: packed by kind, a third of the size of an array of numbers and less."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from bson.binary import Binary, BinaryVectorDtype

from m2rag.errors import InvalidInputError

VectorKind = Literal["float32", "int8", "packed_bit"]
"""float32: 4 bytes a number. int8: 1 byte, about 1 % error. packed_bit: its sign, 1 bit."""


def check_kind(kind: str, dimension: int) -> None:
    """Raise `InvalidInputError` unless vectors of D = `dimension` numbers can be of this kind."""
    if kind not in get_args(VectorKind):
        raise InvalidInputError(f"vectors must be one of {', '.join(get_args(VectorKind))}, not {kind!r}")
    if kind == "packed_bit" and dimension % 8:
        raise InvalidInputError(f"packed_bit vectors need a multiple of 8 dimensions, not {dimension}")


def to_bindata(vector: np.ndarray, kind: VectorKind = "float32") -> Binary:
    """A vector (D,) as BSON.

    int8 numbers are scaled so that the largest is 127: compare them by cosine. A bit is 1 where the number is above 0.
    Query and stored vectors must be of the same kind.

    Raises:
        InvalidInputError: `kind` is unknown, or is packed_bit and D is no multiple of 8.
    """
    check_kind(kind, len(vector))
    if kind == "float32":
        return Binary.from_vector(np.asarray(vector, dtype=np.float32).tolist(), BinaryVectorDtype.FLOAT32)
    if kind == "int8":
        largest = max(float(np.abs(vector).max(initial=0.0)), 1e-12)
        return Binary.from_vector(np.rint(vector * (127 / largest)).astype(int).tolist(), BinaryVectorDtype.INT8)
    # As a list: pymongo's check of arrays takes bytes above 127 for out of range.
    return Binary.from_vector(np.packbits(vector > 0).tolist(), BinaryVectorDtype.PACKED_BIT)


def from_bindata(stored: Binary) -> np.ndarray:
    """The vector (D,) float32 of a BSON value; bits as 0 and 1."""
    found = stored.as_vector()
    if found.dtype != BinaryVectorDtype.PACKED_BIT:
        return np.array(list(found.data), dtype=np.float32)
    bits = np.unpackbits(np.array(list(found.data), dtype=np.uint8))
    return bits[: len(bits) - (found.padding or 0)].astype(np.float32)
