"""A cache that is bounded by a number and by bytes: what people write decides how large an entry is."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Cache(dict[Key, Value]):
    """Entries by key, the oldest first to go. Read it like a dictionary; change it by `put`, `drop` and `clear`."""

    def __init__(self, most: int, most_bytes: int) -> None:
        super().__init__()
        self._most, self._most_bytes = most, most_bytes
        self._sizes: dict[Key, int] = {}
        self.bytes = 0  # of all entries

    def put(self, key: Key, value: Value, size: int) -> None:
        """Keep an entry of so many bytes, in place of others; one that is larger than all may be is not kept."""
        self.drop(key)
        if size > self._most_bytes:
            return
        while self and (len(self) >= self._most or self.bytes + size > self._most_bytes):
            self.drop(next(iter(self)))
        self[key], self._sizes[key] = value, size
        self.bytes += size

    def drop(self, key: Key) -> None:
        """Forget an entry, where there is one."""
        if key in self:
            del self[key]
            self.bytes -= self._sizes.pop(key)

    def clear(self) -> None:
        """Forget everything."""
        super().clear()
        self._sizes.clear()
        self.bytes = 0
