"""Find everybody's experiences with one network."""

from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    op.create_index("network_memory_network", "network_memory", ["network"])
