"""What a checkpoint has at its top level, to compare with what it should have."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("checkpoints", sa.Column("content_keys", sa.JSON, nullable=False, server_default="[]"))
