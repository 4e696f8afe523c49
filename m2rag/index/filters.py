"""What a caller asks of the metadata: equality, ranges, one of several values; checked, and put as stores take it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, TypeAlias, get_args

from m2rag.errors import InvalidInputError
from m2rag.index.documents import is_unicode
from m2rag.stores import FieldKind, Filter, OneOf, Range, Scalar
from m2rag.stores.base import Bound, Wanted

MetadataFilter: TypeAlias = "Mapping[str, Scalar | Mapping[str, Any]]"
"""A metadata field -> the value it must have, or a range or list: `{"year": {"gte": 2015, "lt": 2020}, "suffix":
{"in": [".pdf", ".md"]}}`. Dates are strings in ISO 8601. All must hold; a list matches by any of its items."""

METADATA = "metadata"
"""Payload field that holds the metadata of a document."""

BOUNDS = ("gte", "gt", "lte", "lt")
MAX = 2**63  # what stores take for an integer
MAX_VALUES = 1000
"""Values of one `in`, at most."""


def metadata_filter(filter: MetadataFilter | None) -> Filter | None:
    """What a caller asks of the metadata, as the store takes it.

    Raises:
        InvalidInputError: it is not made of fields and plain values, ranges or lists.
    """
    if filter is None:
        return None
    if not isinstance(filter, Mapping):
        raise InvalidInputError(f"a filter is a mapping of metadata fields to what they must be, not {filter!r}")
    for name in filter:
        if not isinstance(name, str) or not is_unicode(name):
            raise InvalidInputError(f"filter {name!r}: the name of a metadata field is a str of valid Unicode")
    return {(METADATA, name): _wanted(name, value) for name, value in filter.items()} or None


def filterable_fields(fields: Mapping[str, FieldKind] | None) -> dict[tuple[str, ...], FieldKind]:
    """Metadata fields that get an index, as the store takes them.

    Raises:
        InvalidInputError: a kind is unknown.
    """
    for name, kind in (fields or {}).items():
        if not isinstance(name, str) or not name or kind not in get_args(FieldKind):
            raise InvalidInputError(
                f"filterable {name!r}: {kind!r} is not a metadata field and one of {', '.join(get_args(FieldKind))}"
            )
    return {(METADATA, name): kind for name, kind in (fields or {}).items()}


def _wanted(name: str, value: Any) -> Wanted:
    if isinstance(value, (str, int, float)):  # a bool is an int
        return _plain(name, value)
    if isinstance(value, Mapping) and value.keys() == {"in"}:
        return _one_of(name, value["in"])
    if isinstance(value, Mapping) and value and value.keys() <= set(BOUNDS):
        return _range(name, value)
    raise InvalidInputError(
        f"filter {name!r}: {value!r} is not a str, int, float or bool it must equal, nor a range "
        f'({{"gte": 2015, "lt": 2020}}; {", ".join(BOUNDS)}), nor a list ({{"in": [".pdf", ".md"]}})'
    )


def _one_of(name: str, values: Any) -> OneOf:
    if not isinstance(values, Sequence) or isinstance(values, (str, bytes)) or not 0 < len(values) <= MAX_VALUES:
        raise InvalidInputError(f'filter {name!r}: "in" takes a list of 1 to {MAX_VALUES:,} values')
    for value in values:
        if not isinstance(value, (str, int, float)):
            raise InvalidInputError(f'filter {name!r}: {value!r} in "in" is not a str, int, float or bool')
    return OneOf(tuple(_plain(name, value) for value in values))


def _range(name: str, given: Mapping[str, Any]) -> Range:
    bounds: dict[str, Bound] = {which: _bound(name, bound) for which, bound in given.items()}
    found = Range(**bounds)
    if found.of_dates and not all(isinstance(bound, datetime) for bound in bounds.values()):
        raise InvalidInputError(f"filter {name!r}: one bound is a date and the other a number")
    return found


def _bound(name: str, value: Any) -> Bound:
    if isinstance(value, str):
        try:
            date = datetime.fromisoformat(value[:-1] + "+00:00" if value[-1:] in "Zz" else value)
        except ValueError as error:
            raise InvalidInputError(
                f"filter {name!r}: the bound {value!r} is neither a number nor a date as 2020-01-31 or "
                "2020-01-31T12:00:00Z"
            ) from error
        return date if date.tzinfo else date.replace(tzinfo=timezone.utc)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidInputError(f"filter {name!r}: the bound {value!r} is neither a number nor a date")
    return _plain(name, value)


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, str) and not is_unicode(value):
        raise InvalidInputError(f"filter {name!r}: {value!r} is not valid Unicode")
    if isinstance(value, float) and not math.isfinite(value) or isinstance(value, int) and not -MAX <= value < MAX:
        raise InvalidInputError(f"filter {name!r}: {value!r} is no number to compare with")
    return value
