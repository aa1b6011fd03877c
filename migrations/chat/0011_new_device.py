"""Whether a sign-in came from a device that its person had not used before."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    with op.batch_alter_table("sessions") as sessions:
        sessions.add_column(sa.Column("is_new_device", sa.Boolean(), nullable=False, server_default="0"))
        sessions.create_index("sessions_new_device", ["person_id", "is_new_device"])
