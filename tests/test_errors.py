"""Errors cross processes whole: workers send them pickled."""

from __future__ import annotations

import pickle
from uuid import UUID

import pytest

from m2rag import errors

EXAMPLES = [
    errors.InvalidInputError("input 3 is empty"),
    errors.InputTooLongError(2, 40_000, 32_768),
    errors.OutOfMemoryError("document 7"),
    errors.RemoteError("no answer", status=503, retry_after=2.5),
    errors.PointTooLargeError("too large", [UUID(int=5)]),
    errors.IndexMismatchError("papers", "one", "another"),
    errors.MissingDependencyError("pip install it"),
]


def test_examples_hold_every_error_with_a_constructor_of_its_own():
    own = {
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.M2RagError) and "__init__" in vars(kind)
    }
    assert own <= {type(error) for error in EXAMPLES}


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_pickled_it_is_the_same(error):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error) and str(copy) == str(error)
    assert copy.args == error.args and vars(copy) == vars(error)
