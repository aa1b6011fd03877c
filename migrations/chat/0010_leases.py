"""Budgets of people that all workers share."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"

ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "leases",
        sa.Column("kind", sa.String(10), primary_key=True),
        sa.Column("person_id", ID, sa.ForeignKey("people.id"), primary_key=True),
        sa.Column("used", sa.Float(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
    )
