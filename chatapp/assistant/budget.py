"""Each person's daily tokens, over all workers: a leaky bucket, so that there is always some again soon."""

from __future__ import annotations

from contextlib import suppress

from chatapp.store import StorageUnavailable
from chatapp.store.leases import LeaseTable

KIND = "tokens"
DAY_S = 86_400


class Budget:
    """Budgets of tokens. `a_day`: 0 for none."""

    def __init__(self, leases: LeaseTable | None, a_day: int) -> None:
        self._leases, self._a_day = leases, a_day

    def wait_s(self, person: int) -> float:
        """Return the seconds until the person may ask again; 0: now."""
        if self._leases is None or not self._a_day or not person:
            return 0.0
        try:
            return self._leases.wait_s(KIND, person, self._a_day, self._a_day / DAY_S)
        except StorageUnavailable:  # a busy database costs nobody their answer
            return 0.0

    def spend(self, person: int, tokens: int) -> None:
        """Take so many tokens, also more than are left; less than 0 gives back."""
        if self._leases is not None and self._a_day and person and tokens:
            with suppress(StorageUnavailable):
                self._leases.add(KIND, person, tokens, self._a_day / DAY_S)
