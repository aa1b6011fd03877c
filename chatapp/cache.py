"""A cache bounded by entries and by bytes, because the size of an entry is the users' choice."""

from collections.abc import Hashable
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Cache(dict[Key, Value]):
    """A first-in, first-out cache. Read it like a dictionary; change it by `put`, `drop` and `clear` only."""

    def __init__(self, most: int, most_bytes: int) -> None:
        super().__init__()
        self._most, self._most_bytes = most, most_bytes
        self._sizes: dict[Key, int] = {}
        self.bytes = 0  # of all entries

    def put(self, key: Key, value: Value, size: int) -> None:
        """Add an entry of `size` bytes, evicting others; one above the cache's bound is not added."""
        self.drop(key)
        if size > self._most_bytes:
            return
        while self and (len(self) >= self._most or self.bytes + size > self._most_bytes):
            self.drop(next(iter(self)))
        self[key], self._sizes[key] = value, size
        self.bytes += size

    def drop(self, key: Key) -> None:
        """Remove an entry, if present."""
        if key in self:
            del self[key]
            self.bytes -= self._sizes.pop(key)

    def clear(self) -> None:
        """Remove all entries."""
        super().clear()
        self._sizes.clear()
        self.bytes = 0
