"""When the assistant answers in a conversation: always, or only where it is addressed."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    with op.batch_alter_table("conversations") as conversations:
        conversations.add_column(sa.Column("answers", sa.String(10), nullable=False, server_default="always"))
