"""What a run has seen, in little memory: millions of documents are added in one."""

from __future__ import annotations

_BYTES = 16
_ENTRY = 2 * _BYTES


class Seen:
    """Ids, each with a digest of what came under it: some 45 bytes each, where a dict takes 250.

    Entries lie side by side in 65,536 buckets, by the first two bytes of the id.
    """

    def __init__(self) -> None:
        self._buckets: dict[bytes, bytearray] = {}

    def first(self, id: bytes, digest: bytes) -> bytes | None:
        """The digest that came first under this id; None if this is the first, which is kept.

        Args:
            id: 16 bytes that are spread evenly.
            digest: 16 bytes.
        """
        bucket = self._buckets.setdefault(id[:2], bytearray())
        place = bucket.find(id)
        while place >= 0 and place % _ENTRY:  # parts of other entries may look like it
            place = bucket.find(id, place + 1)
        if place >= 0:
            return bytes(bucket[place + _BYTES : place + _ENTRY])
        bucket += id + digest
        return None
