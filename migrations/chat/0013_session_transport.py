"""What carries a session's connection, and when that was noted."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    with op.batch_alter_table("sessions") as sessions:
        sessions.add_column(sa.Column("transport", sa.String(10), nullable=False, server_default=""))
        sessions.add_column(sa.Column("transport_at", sa.BigInteger(), nullable=False, server_default="0"))
