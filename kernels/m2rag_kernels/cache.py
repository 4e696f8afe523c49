"""Values derived from parameters (half-precision copies, spectra), kept until the parameters change."""

from __future__ import annotations

import copy
import ctypes
import math
import mmap
import sys
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import torch

DEFAULT_SPECTRA_BYTES = 384 * 2**20

# Just below the largest block (32 MiB) that glibc's allocator keeps for itself instead of giving it back when freed.
_HEAP_BLOCK_BYTES = 31 * 2**20


class _Stamp(NamedTuple):
    """What tells that a tensor is still the one a value was made from."""

    tensor: weakref.ref[torch.Tensor]
    data_ptr: int
    version: int

    @classmethod
    def of(cls, tensor: torch.Tensor) -> _Stamp:
        # Tensors made in inference mode have no version and cannot be changed outside of it.
        version = -1 if tensor.is_inference() else tensor._version
        return cls(weakref.ref(tensor), tensor.data_ptr(), version)

    def holds(self, tensor: torch.Tensor) -> bool:
        return self.tensor() is tensor and self[1:] == _Stamp.of(tensor)[1:]


class _Entry(NamedTuple):
    stamps: list[_Stamp]
    value: torch.Tensor
    nbytes: int
    shares: bool


class DerivedCache:
    """Tensors computed from other tensors, least recently used ones dropped first.

    An entry is forgotten when a tensor it was made from was replaced, moved or changed in place. Copies and pickles of
    the cache are empty: what it holds can always be computed again.

    Args:
        max_bytes: budget of all entries together; None: no limit.
    """

    def __init__(self, max_bytes: int | None = None) -> None:
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._lock = threading.Lock()
        self._nbytes = 0
        self.max_bytes = max_bytes

    def __reduce__(self) -> tuple[type[DerivedCache], tuple[int | None]]:
        return type(self), (self._max_bytes,)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Bytes of all entries."""
        return self._nbytes

    @property
    def max_bytes(self) -> int | None:
        return self._max_bytes

    @max_bytes.setter
    def max_bytes(self, value: int | None) -> None:
        if value is not None and value < 0:
            raise ValueError(f"max_bytes is {value}, must be None or at least 0")
        with self._lock:
            self._max_bytes = value
            self._shrink()

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()
            self._nbytes = 0

    def find(self, what: Hashable, sources: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """The value kept under `what` for these tensors, or None if there is none that is still right."""
        key = (what, *map(id, sources))
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            if not all(stamp.holds(source) for stamp, source in zip(entry.stamps, sources, strict=True)):
                self._drop(key)
                return None
            self._entries.move_to_end(key)
            return entry.value

    def keep(
        self, what: Hashable, sources: Sequence[torch.Tensor], value: torch.Tensor, share: float | None = None
    ) -> None:
        """Keep a value that was made from `sources`; older ones make room, a value above the budget is not kept.

        Values kept with a `share` take at most this part of the budget together, and do not make room for each other.
        """
        nbytes = value.numel() * value.element_size()
        key = (what, *map(id, sources))
        with self._lock:
            if share is not None and self._max_bytes is not None:
                others = sum(entry.nbytes for k, entry in self._entries.items() if entry.shares and k != key)
                if others + nbytes > share * self._max_bytes:
                    return
            self._drop(key)
            if self._max_bytes is not None and nbytes > self._max_bytes:
                return
            self._entries[key] = _Entry([_Stamp.of(source) for source in sources], value, nbytes, share is not None)
            self._nbytes += nbytes
            self._shrink()

    def fetch(self, what: Hashable, sources: Sequence[torch.Tensor], make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """The value kept, or `make()`, kept from now on."""
        value = self.find(what, sources)
        if value is None:
            value = make()
            self.keep(what, sources, value)
        return value

    def _drop(self, key: Hashable) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._nbytes -= entry.nbytes

    def _shrink(self) -> None:
        while self._max_bytes is not None and self._nbytes > self._max_bytes:
            _, entry = self._entries.popitem(last=False)
            self._nbytes -= entry.nbytes


def lasting_empty(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """A contiguous CPU tensor of zeros, in memory that goes back to the system when the tensor does.

    For what is kept between calls: among a call's short-lived tensors in the heap, values that come and go with a
    length of input leave holes that nothing else fits into, and a process that serves many lengths grows by them.
    """
    size = math.prod(shape)
    return torch.frombuffer(mmap.mmap(-1, max(size, 1) * dtype.itemsize), dtype=dtype)[:size].view(*shape)


class HeapTrimmer:
    """Gives memory of the heap that nobody uses back to the system, now and then.

    Large tensors of changing lengths leave holes in glibc's heap that it neither fills nor returns (aligned blocks do
    not fit where one of their size was freed, glibc bug 14581): a process that embeds documents of many lengths would
    grow by a gigabyte. Under other allocators it does nothing.

    Args:
        seconds: between two times; each costs some milliseconds, and the pages it returned when they are used again.
    """

    def __init__(self, seconds: float = 2.0) -> None:
        self._seconds = seconds
        self._last = time.monotonic()
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None

    def __call__(self) -> None:
        """For the end of a large piece of work, in any thread."""
        if self._trim is not None and time.monotonic() - self._last >= self._seconds:
            self._trim(0)
            self._last = time.monotonic()


class Scratch:
    """Buffers that are overwritten again and again: fresh memory of many megabytes costs more than filling it."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype], torch.Tensor] = {}

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A contiguous tensor whose content is undefined; valid until the name is taken again."""
        size = math.prod(shape)
        buffer = self._buffers.get((name, dtype))
        if buffer is None or buffer.numel() < size:
            buffer = self._buffers[name, dtype] = torch.empty(size, dtype=dtype)
        return buffer[:size].view(*shape)


class Workspace:
    """What the inference paths of one model compute in and what they keep between calls.

    Args:
        compute_dtype: of matrix products and of what passes between layers; sums and transforms are fp32.
        n_filters: long filters of the whole model. Their spectra are used in turn, so keeping some of them while
            the rest does not fit would only push each other out: all or none are kept.
        spectra_bytes: budget of the spectra.
    """

    def __init__(
        self,
        compute_dtype: torch.dtype = torch.float32,
        n_filters: int = 1,
        spectra_bytes: int = DEFAULT_SPECTRA_BYTES,
    ) -> None:
        self.compute_dtype = compute_dtype
        self.n_filters = n_filters
        self.weights = DerivedCache()
        self.spectra = DerivedCache(spectra_bytes)
        self.scratch = Scratch()

    def for_one_call(self) -> Workspace:
        """The same caches with buffers of its own, so that calls of several threads do not meet."""
        # glibc takes the size of a freed block as the size that it should serve from its heap from then on. Without
        # this the transforms' results come from the system, page fault by page fault: a quarter of the whole time.
        torch.empty(_HEAP_BLOCK_BYTES, dtype=torch.uint8)
        twin = copy.copy(self)
        twin.scratch = Scratch()
        return twin

    def clear(self) -> None:
        self.weights.clear()
        self.spectra.clear()

    def cast(self, weight: torch.Tensor) -> torch.Tensor:
        """A weight in the compute dtype; the copy is kept."""
        if weight.dtype == self.compute_dtype:
            return weight.detach()
        return self.weights.fetch(self.compute_dtype, [weight], lambda: weight.detach().to(self.compute_dtype))

    def fit(self, device: torch.device) -> None:
        """On a GPU, let the spectra take a quarter of its memory, unless a budget was set."""
        if device.type == "cuda" and self.spectra.max_bytes == DEFAULT_SPECTRA_BYTES:
            self.spectra.max_bytes = torch.cuda.get_device_properties(device).total_memory // 4

    def keep_aside(self, what: Hashable, sources: Sequence[torch.Tensor], value: torch.Tensor) -> None:
        """Keep what spectra are made from, where they do not fit themselves, in a third of their budget.

        Having some of it helps too, unlike spectra.
        """
        if value.device.type == "cpu":
            value = lasting_empty(value.shape, value.dtype).copy_(value)
        self.spectra.keep(what, sources, value, share=1 / 3)

    def keeps_spectra_of(self, nbytes: int) -> bool:
        """Whether spectra of this size are kept."""
        limit = self.spectra.max_bytes
        return limit is None or nbytes * self.n_filters <= limit
