"""Every query that runs with a message, a read, a poll or a connection finds its rows by an index."""

import re
import uuid

import pytest
from sqlalchemy import event

from chatapp.accounts.auth import hash_token
from chatapp.network_memory import Experience
from chatapp.parts import Parts
from chatapp.store import Actor, AuditFilter, ConnectionEvent, Lives, now_ms
from chatapp.store.models import db

MAY_SCAN = {"CONSTANT ROW"}
ONCE = re.compile(r"kind = '(person|assistant)'\)?( AS \w+)?$")  # in a process, or by a command
Traced = list[str]


def trace(parts: Parts) -> Traced:
    """The statements that SQLite runs from now on, with their values: also those that bypass SQLAlchemy."""
    found: Traced = []
    for database in (parts.store.database, parts.store.events.database):

        @event.listens_for(database.engine, "checkout")
        def begin(connection: object, *_: object) -> None:
            connection.set_trace_callback(found.append)  # type: ignore[attr-defined]

    return found


def plans(parts: Parts, found: Traced) -> list[tuple[str, str]]:
    """Each statement with how SQLite runs it."""
    lines = []
    statements = [one for one in dict.fromkeys(found) if re.match(r"SELECT|UPDATE|DELETE|INSERT", one)]
    for statement in statements:
        is_measure = any(re.search(rf"\b{table}\b", statement) for table in db.metadatas["metrics"].tables)
        engine = (parts.store.events if is_measure else parts.store).database.engine
        with engine.connect() as connection:
            raw = connection.connection.driver_connection
            assert raw is not None
            raw.set_trace_callback(None)
            rows = raw.execute(f"EXPLAIN QUERY PLAN {statement}").fetchall()
        lines += [(statement, row[3]) for row in rows]
    return lines


def scans(planned: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Steps that walk through a table."""
    return [
        (statement, step)
        for statement, step in planned
        if step.startswith("SCAN ") and step.removeprefix("SCAN ") not in MAY_SCAN and not ONCE.search(statement)
    ]


def use_everything(parts: Parts) -> None:
    """What people and the assistant do all day."""
    chat, store = parts.chat, parts.store
    ada = store.people.add_admin("Ada", "ada@example.org", "x").id
    store.people.add_session(ada, hash_token("token"), Lives(3600, 3600, 3600), "127.0.0.1", "")
    place = chat.create(ada, str(uuid.uuid4()))
    for number in range(60):
        chat.post(ada, place.uuid, str(uuid.uuid4()), f"message {number}")
    run = store.runs.claim_run("lease")
    assert run is not None
    store.runs.write_answer(run, "text", [(0, "<p>te</p>")])
    store.runs.write_answer(run, "text", [(0, "<p>text</p>")])
    store.runs.end_run(run, "completed", "text", [(0, "<p>text.</p>")], None)
    for cursor in (0, 3, 60):
        chat.changes(place, cursor)
        chat.entries(ada, min(cursor, 1))
    store.conversations.most_changes = 5
    chat.changes(place, 3)
    chat.older(place, 30)
    chat.rename(ada, place.uuid, "another title")
    chat.delete_message(ada, place.uuid, chat.older(place, 20).items[0].uuid)
    store.conversations.newest(ada)
    store.people.session(hash_token("token"))
    store.people.renew(hash_token("token"), Lives(7200, 7200, 7200))
    store.people.password_hash("ada@example.org")
    store.people.add_session(ada, hash_token("another"), Lives(3600, 3600, 3600), "127.0.0.1", "")
    (newest, oldest), _more = store.sessions.live(ada)
    store.sessions.live(ada, after=newest.uuid)
    store.sessions.agents(ada)
    store.sessions.newcomers(ada)
    store.sessions.acknowledge(ada, newest.uuid)
    store.sessions.owner(hash_token("token"))
    store.leases.take("sends", ada, 10, 1, 1)
    store.people.last_seen.note(1, 0)
    store.people.last_seen.write()
    store.people.change_password(ada, "x", "y", session=1)
    administration = parts.administration
    administration.end_own_session(Actor(ada, ""), oldest.uuid)
    administration.end_own_sessions(Actor(ada, ""), keep=0)
    manage_people(parts, Actor(ada, ""))
    store.database.revision(place.feed, reread=True)
    store.runs.is_answering(place.conversation)
    store.runs.reap_runs(lambda _run, _lease: True, "another", 1)
    chat.stop(ada, place.uuid)
    chat.again(ada, place.uuid)
    store.people.end_session(hash_token("token"))
    chat.delete(Actor(ada, ""), place.uuid)
    name = str(uuid.uuid4())
    store.networks.record(ada, [Experience("0123456789ab", now_ms(), False, 0)])
    assert store.networks.remembered(ada, "0123456789ab")
    store.events.add([ConnectionEvent(name, 1, name, "x", None, None, None, None, now_ms(), "{}")])
    store.networks.of_site("0123456789ab")
    store.runs.is_failing(60_000)
    store.events.since("server-start", 0)
    store.events.late_since(now_ms(), now_ms())
    store.events.of_page(name, 10)
    list(store.events.scan(0, now_ms(), 10))
    store.alerts.open_incident()
    store.alerts.due_notices(now_ms())
    store.measures.newest("m")
    store.measures.between("m", 0, now_ms())


def manage_people(parts: Parts, ada: Actor) -> None:
    """All that an operator does."""
    administration, store = parts.administration, parts.store
    link = administration.open_link(administration.invite(ada, "bo@example.org", True))
    store.links.invitations()
    administration.accept(link, "Bo", "x", "")
    administration.invite(ada, "cy@example.org", False)
    administration.withdraw(ada, store.links.invitations()[0].uuid)
    bo = store.directory.find_by_email("bo@example.org")
    assert bo is not None and store.directory.find(bo.uuid)
    store.directory.page()
    store.directory.page("b", after=bo.uuid)
    administration.set_role(ada, bo.uuid, False)
    administration.reset(administration.open_link(administration.make_reset(ada, bo.uuid)), "y", "")
    administration.disable(ada, bo.uuid)
    administration.enable(ada, bo.uuid)
    parts.chat.post(bo.id, str(uuid.uuid4()), str(uuid.uuid4()), "hello", create=True)
    store.sessions.confirm(1)
    store.sessions.is_confirmed(1)
    administration.delete(ada, bo.uuid, "bo@example.org")
    newest = store.audit.page(AuditFilter())[0][0]
    store.audit.page(AuditFilter(), after=newest.uuid)
    store.audit.page(AuditFilter(action="role"))
    store.audit.page(AuditFilter(person=bo.id))
    store.audit.page(AuditFilter(store.directory.number_of(bo.uuid), "role", 1, now_ms()), after=newest.uuid)


def test_no_statement_walks_through_a_table(parts: Parts) -> None:
    found = trace(parts)
    use_everything(parts)
    planned = plans(parts, found)
    assert len({statement.split("WHERE")[0] for statement, _ in planned}) > 25, "all of them were seen"
    walked = scans(planned)
    assert not walked, "\n".join(f"{step}: {statement}" for statement, step in walked)


@pytest.mark.parametrize(
    ("statement", "index"),
    [
        (r"SELECT messages.*messages\.revision > ", "messages_revision (conversation_id=? AND revision>?)"),
        (r"SELECT messages.*kind = 'assistant' AND messages\.position <= ", "(conversation_id=? AND position<?)"),
        (r"SELECT messages.*messages\.position < ", "(conversation_id=? AND position<?)"),
        (
            r"SELECT conversations.*client_id = ",
            "INDEX sqlite_autoindex_messages_1 (conversation_id=? AND author_id=? AND client_id=?)",
        ),
        (r"UPDATE feeds", "COVERING INDEX feeds_change"),
        (r"SELECT.*memberships\.list_revision > ", "memberships_list (person_id=? AND list_revision>?)"),
        (r"SELECT network_memory.*network = ", "(person_id=? AND network=?)"),
        (r"SELECT sessions.*token_hash = ", "(token_hash=?)"),
        (r"SELECT audit.*audit\.action = '[a-z]*' ORDER BY", "audit_action (action=? AND rowid<?)"),
        (r"SELECT audit.*actor_id = \d+ OR .*\) ORDER BY", "audit_actor (actor_id=?"),
        (r"SELECT people.*email > ''.*kind = 'person' ORDER BY", "(email>?)"),
        (r"SELECT links.*token_hash = ", "(token_hash=?)"),
        (r"SELECT runs.*state = 'queued'\s*$", "runs_conversation (conversation_id=? AND state=?)"),
    ],
)
def test_the_hot_ones_use_the_index_that_is_meant_for_them(parts: Parts, statement: str, index: str) -> None:
    found = trace(parts)
    use_everything(parts)
    steps = [step for text, step in plans(parts, found) if re.match(statement, " ".join(text.split()))]
    assert steps, "the statement was not seen"
    assert any(index in step for step in steps), steps
