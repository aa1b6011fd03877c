"""How far an answer is before its first word, and what it took; the model and instructions of a conversation."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"

ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    with op.batch_alter_table("messages") as messages:
        messages.add_column(sa.Column("phase", sa.String(40)))
        messages.add_column(sa.Column("figures", sa.Text()))
    with op.batch_alter_table("conversations") as conversations:
        conversations.add_column(sa.Column("model", sa.String(120), nullable=False, server_default=""))
        conversations.add_column(sa.Column("instructions", sa.Text(), nullable=False, server_default=""))
    with op.batch_alter_table("runs") as runs:
        runs.add_column(sa.Column("asked_by", ID))
        runs.add_column(sa.Column("goes_on", sa.Boolean(), nullable=False, server_default=sa.false()))
