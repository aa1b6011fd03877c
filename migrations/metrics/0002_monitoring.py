"""Events by page and server time, what is known of each page, roll-ups, and a row of each worker."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    for name, length in (("page", 36), ("network", 12), ("agent", 60)):
        op.add_column("connection_events", sa.Column(name, sa.String(length=length), server_default="", nullable=False))
    op.add_column("connection_events", sa.Column("at", sa.BigInteger(), server_default="0", nullable=False))
    op.execute("UPDATE connection_events SET at = happened_at")
    op.execute("UPDATE connection_events SET page = client WHERE type NOT LIKE 'server-%'")
    op.create_index("connection_events_at", "connection_events", ["at"], unique=False)
    op.create_index("connection_events_page", "connection_events", ["page", "at"], unique=False)
    own = sa.text("person = ''")  # the few events of workers and networks, among those of people
    op.create_index(
        "connection_events_own", "connection_events", ["type", "at"], sqlite_where=own, postgresql_where=own
    )
    op.create_table(
        "rollups",
        sa.Column("span", sa.String(length=1), nullable=False),
        sa.Column("start", sa.BigInteger(), nullable=False),
        sa.Column("data", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("span", "start"),
    )
    op.create_table(
        "live_pages",
        sa.Column("page", sa.String(length=36), nullable=False),
        sa.Column("data", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("page"),
    )
    op.create_table(
        "worker_rows",
        sa.Column("worker", sa.String(length=40), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("data", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("worker"),
    )
