"""An answer that waits is shown: the feed's revision of its last change, and how many are before it."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    with op.batch_alter_table("runs") as runs:
        runs.add_column(sa.Column("revision", sa.BigInteger().with_variant(sa.Integer, "sqlite"), nullable=True))
        runs.add_column(sa.Column("ahead", sa.Integer(), nullable=False, server_default="0"))
