"""Sessions are renewed: access for a short time, an end without a renewal, and an end of all."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

NEVER = "9007199254740991"  # where a program that knows no renewal adds a session, `expires_at` alone ends it


def upgrade() -> None:
    with op.batch_alter_table("sessions") as sessions:
        sessions.add_column(sa.Column("access_until", sa.BigInteger(), nullable=False, server_default=NEVER))
        sessions.add_column(sa.Column("idle_until", sa.BigInteger(), nullable=False, server_default=NEVER))
    # An update signs nobody out: a session of before lives as long as it was to.
    op.execute("UPDATE sessions SET access_until = expires_at, idle_until = expires_at")
