"""People as operators see and change them."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import Connection, Select, Update, func, or_, select, update

from chatapp.bus import ACCESS
from chatapp.store.database import Database, Write, now_ms
from chatapp.store.models import InstanceValue, Person
from chatapp.store.people import FIRST_ADMIN

PEOPLE_SHOWN = 50  # in one page of the list
LONGEST_WORDS = 100  # of a search


@dataclass(frozen=True, slots=True)
class ListedPerson:
    """A person with an account. Times are milliseconds since 1970 UTC."""

    id: int
    uuid: str
    name: str
    email: str
    is_operator: bool
    created_at: int
    disabled_at: int | None


COLUMNS = [getattr(Person, field.name) for field in fields(ListedPerson)]
# By the index of addresses: neither the assistant nor deleted people have one.
ACCOUNTS = select(*COLUMNS).where(Person.email > "", Person.kind == "person")


class Directory:
    """Queries about people with an account."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def page(self, words: str = "", after: str = "", most: int = PEOPLE_SHOWN) -> tuple[list[ListedPerson], bool]:
        """Return a page of people by address, and True if there are more.

        `words`: in name or address. `after`: the UUID of the last person of the page before.
        """
        query = ACCOUNTS.order_by(Person.email).limit(most + 1)
        if words:
            words = words[:LONGEST_WORDS]
            in_name, in_email = (one.icontains(words, autoescape=True) for one in (Person.name, Person.email))
            query = query.where(or_(in_name, in_email))
        if after:
            last = select(Person.email).where(Person.uuid == after).scalar_subquery()
            query = query.where(Person.email > func.coalesce(last, ""))
        with self._database.read() as connection:
            found = [ListedPerson(*row) for row in connection.execute(query).all()]
        return found[:most], len(found) > most

    def find(self, uuid: str) -> ListedPerson | None:
        """Return the person, or None."""
        with self._database.read() as connection:
            return _one(connection, ACCOUNTS.where(Person.uuid == uuid))

    def find_by_email(self, email: str) -> ListedPerson | None:
        """Return the person with this address, or None."""
        with self._database.read() as connection:
            return _one(connection, ACCOUNTS.where(Person.email == email.lower()))

    def names(self, uuids: Iterable[str]) -> dict[str, str]:
        """Return the names of people by their UUID; a deleted one has none."""
        query = select(Person.uuid, Person.name).where(Person.uuid.in_(list(uuids)), Person.deleted_at.is_(None))
        with self._database.read() as connection:
            return {uuid: name for uuid, name in connection.execute(query).all()}

    def uuid_of(self, person: int) -> str | None:
        """Return the UUID of a person's number, or None."""
        with self._database.read() as connection:
            found: str | None = connection.execute(select(Person.uuid).where(Person.id == person)).scalar_one_or_none()
        return found

    def number_of(self, uuid: str) -> int | None:
        """Return the number of a person, also of a deleted one, or None."""
        with self._database.read() as connection:
            return connection.execute(select(Person.id).where(Person.uuid == uuid)).scalar_one_or_none()

    def find_in(self, tx: Write, uuid: str) -> ListedPerson | None:
        """Return the person as `find` does, in a write transaction."""
        return _one(tx.connection, ACCOUNTS.where(Person.uuid == uuid))

    def find_in_by_email(self, tx: Write, email: str) -> ListedPerson | None:
        """Return the person as `find_by_email` does, in a write transaction."""
        return _one(tx.connection, ACCOUNTS.where(Person.email == email.lower()))

    def has_account(self, tx: Write, email: str) -> bool:
        """Return True if the address belongs to somebody."""
        return self.find_in_by_email(tx, email) is not None

    def is_operator(self, tx: Write, person: int) -> bool:
        """Return True if this person is an enabled operator."""
        return self._operator(tx, Person.id == person)

    def has_other_operator(self, tx: Write, person: int) -> bool:
        """Return True if somebody else is an enabled operator."""
        return self._operator(tx, Person.id != person)

    def _operator(self, tx: Write, which: Any) -> bool:
        query = ACCOUNTS.where(which, Person.is_operator, Person.disabled_at.is_(None)).limit(1)
        return tx.connection.execute(query).first() is not None

    def change(self, tx: Write, person: int, **values: Any) -> None:
        """Change a person; every worker forgets the permissions that it has in memory."""
        tx.connection.execute(update(Person).where(Person.id == person).values(**values))
        tx.bump(ACCESS)

    def disable(self, tx: Write, person: int) -> None:
        """Block a person's sign-in."""
        self.change(tx, person, disabled_at=now_ms())

    def bury(self, tx: Write, person: int) -> None:
        """Take name, address and password from a person: a tombstone stays. `Erasure` removes the rest."""
        now = now_ms()
        gone = {"name": "", "email": None, "password_hash": None, "is_operator": False, "is_admin": False}
        tx.connection.execute(_forget_first_admin(person))
        self.change(tx, person, **gone, disabled_at=func.coalesce(Person.disabled_at, now), deleted_at=now)


def _forget_first_admin(person: int) -> Update:
    """Remove the address from the row that the first run left."""
    email = select(Person.email).where(Person.id == person).scalar_subquery()
    return update(InstanceValue).where(InstanceValue.name == FIRST_ADMIN, InstanceValue.value == email).values(value="")


def _one(connection: Connection, query: Select[Any]) -> ListedPerson | None:
    row = connection.execute(query).first()
    return ListedPerson(*row) if row else None
