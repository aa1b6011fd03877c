"""Failed sign-ins for the audit: a bounded number of rows, whatever the number of attempts."""

import logging

from chatapp.accounts.limits import Quota, Rate
from chatapp.cache import Cache
from chatapp.concurrency import soon
from chatapp.store import Actor, AuditTable, StorageUnavailable

OF_PERSON = Rate(5, 1 / 600)  # rows: five at once, then one in ten minutes, with the number since the last
OF_ALL = Rate(100, 100 / 3600)  # in an hour, however many accounts are tried
MOST_PEOPLE, PERSON_BYTES = 10_000, 100
EVERYBODY = 0

log = logging.getLogger("chatapp.audit")


class Failures:
    """Counts failures of this process, and records some of them."""

    def __init__(self, audit: AuditTable) -> None:
        self._audit = audit
        self._of_person = Quota(OF_PERSON)
        self._of_all = Quota(OF_ALL)
        self._unrecorded: Cache[tuple[str, int], int] = Cache(MOST_PEOPLE, MOST_PEOPLE * PERSON_BYTES)

    def note(self, action: str, actor: Actor, person: int | None) -> None:
        """Count a failure at a person's account, None: at no known one. The row is written later: its time would tell
        whether there is such an account."""
        key = (action, person or EVERYBODY)
        number = (self._unrecorded.get(key) or 0) + 1
        if self._of_person.consume(key, 1) or self._of_all.consume(EVERYBODY, 1):
            self._unrecorded.put(key, number, PERSON_BYTES)
            return
        self._unrecorded.drop(key)
        soon(self._record, action, actor, person, number)

    def _record(self, action: str, actor: Actor, person: int | None, number: int) -> None:
        try:
            self._audit.add(action, actor, person, "" if number == 1 else str(number))
        except StorageUnavailable:  # already logged
            log.warning("%d failures (%s) are not in the audit", number, action)
