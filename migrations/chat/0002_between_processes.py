"""Rows that tell other processes of queued answers (0) and of changed permissions (-1), and whose sessions ended."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    feeds = sa.table("feeds", sa.column("id"), sa.column("revision"), sa.column("change"))
    op.bulk_insert(feeds, [{"id": 0, "revision": 0, "change": 0}, {"id": -1, "revision": 0, "change": 0}])
    op.create_index("sessions_revoked", "sessions", ["revoked_at"])
