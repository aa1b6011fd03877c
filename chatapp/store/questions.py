"""Questions that the knowledge folder did not answer, and documents that did not help, in the metrics database."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import delete, func, select

from chatapp.store import sqlite
from chatapp.store.database import Database
from chatapp.store.models import Question

MOST_QUESTIONS = 500  # the ones that were asked longest ago go first
LONGEST_QUESTION = 300  # characters
NO_HELP = "no-help"
KINDS = ("not-found", "not-sure", NO_HELP)


@dataclass(frozen=True)
class CountedQuestion:
    """A question, or words about the document `slug`, which may be none. `kind`: one of KINDS. `last_at`: ms."""

    kind: str
    slug: str
    text: str
    number: int
    last_at: int
    id: int = 0


COLUMNS = (Question.kind, Question.slug, Question.text, Question.number, Question.last_at, Question.id)


class QuestionTable:
    """Queries about questions."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, found: Iterable[CountedQuestion]) -> None:
        """Count these; a question that is known takes over the kind of now."""
        with self._database.write() as tx:
            for one in found:
                row = {name: getattr(one, name) for name in ("kind", "slug", "text", "number", "last_at")}
                statement = sqlite.insert(Question).values(row)
                new = statement.excluded
                changed = {"kind": new.kind, "number": Question.number + new.number, "last_at": new.last_at}
                tx.connection.execute(statement.on_conflict_do_update(index_elements=["slug", "text"], set_=changed))
            kept = select(Question.id).order_by(Question.last_at.desc(), Question.id.desc()).limit(MOST_QUESTIONS)
            tx.connection.execute(delete(Question).where(Question.id.not_in(kept)))

    def newest(self, *, is_no_help: bool, most: int | None, by_number: bool = False) -> list[CountedQuestion]:
        """Return questions, or words about documents: the newest first, or those asked most often. `most` None: all."""
        order = (Question.last_at.desc(), Question.id.desc())
        if by_number:
            order = (Question.number.desc(), *order)  # type: ignore[assignment]
        kind = Question.kind == NO_HELP if is_no_help else Question.kind != NO_HELP
        with self._database.read() as connection:
            rows = connection.execute(select(*COLUMNS).where(kind).order_by(*order).limit(most)).all()
        return [CountedQuestion(*row) for row in rows]

    def count(self, *, is_no_help: bool) -> int:
        """Return the number of such rows."""
        kind = Question.kind == NO_HELP if is_no_help else Question.kind != NO_HELP
        with self._database.read() as connection:
            return connection.execute(select(func.count()).where(kind)).scalar_one()

    def find(self, question: int) -> CountedQuestion | None:
        """Return the row of this number, or None."""
        with self._database.read() as connection:
            row = connection.execute(select(*COLUMNS).where(Question.id == question)).first()
        return CountedQuestion(*row) if row else None

    def forget(self, question: int) -> bool:
        """Delete a row. Return False if there was none."""
        with self._database.write() as tx:
            return tx.connection.execute(delete(Question).where(Question.id == question)).rowcount > 0

    def delete_before(self, at: int, most: int) -> int:
        """Delete some rows of questions that were last asked before a moment. Return their number."""
        old = select(Question.id).where(Question.last_at < at).order_by(Question.last_at).limit(most)
        with self._database.write() as tx:
            return tx.connection.execute(delete(Question).where(Question.id.in_(old))).rowcount
