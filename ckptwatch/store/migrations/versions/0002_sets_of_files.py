"""A checkpoint may be a set of files."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("checkpoints", sa.Column("members", sa.JSON, nullable=False, server_default="[]"))
