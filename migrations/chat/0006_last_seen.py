"""When a session was last used, for the list of one's own sessions."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    with op.batch_alter_table("sessions") as sessions:
        sessions.add_column(sa.Column("last_seen_at", sa.BigInteger(), nullable=False, server_default="0"))
    op.execute("UPDATE sessions SET last_seen_at = created_at")
