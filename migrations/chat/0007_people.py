"""People are managed: one-use links (invitations, resets), deletion, and when a password was last confirmed."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "links",
        sa.Column("id", ID, primary_key=True),
        sa.Column("uuid", sa.String(36), nullable=False, unique=True),
        sa.Column("kind", sa.String(10), nullable=False),
        sa.Column("token_hash", sa.String(64), nullable=False, unique=True),
        sa.Column("email", sa.String(320)),
        sa.Column("is_operator", sa.Boolean(), nullable=False, server_default="0"),
        sa.Column("person_id", ID, sa.ForeignKey("people.id")),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("spent_at", sa.BigInteger()),
        sa.Column("revoked_at", sa.BigInteger()),
    )
    op.create_index("links_expires", "links", ["expires_at"])
    op.create_index("links_email", "links", ["email"])
    op.create_index("links_person", "links", ["person_id"])
    op.add_column("people", sa.Column("deleted_at", sa.BigInteger()))
    op.add_column("people", sa.Column("erased_at", sa.BigInteger()))
    op.create_index("people_deleted", "people", ["deleted_at"])
    op.add_column("sessions", sa.Column("confirmed_at", sa.BigInteger(), nullable=False, server_default="0"))
