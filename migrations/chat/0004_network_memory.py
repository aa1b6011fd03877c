"""What each person's browsers learned of networks, so that the next browser begins with it."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    person = sa.ForeignKey("people.id", ondelete="CASCADE")
    op.create_table(
        "network_memory",
        sa.Column("person_id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), person, primary_key=True),
        sa.Column("network", sa.String(12), primary_key=True),
        sa.Column("worked", sa.Float(), nullable=False),
        sa.Column("failed", sa.Float(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("kill_gap", sa.Integer(), nullable=False),
    )
