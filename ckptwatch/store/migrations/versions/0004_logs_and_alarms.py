"""What training logs, which of it belongs to which checkpoint, and what is wrong with a run."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "logs",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("run_id", sa.Integer, sa.ForeignKey("runs.id"), nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("dialect", sa.Text, nullable=False),
        sa.Column("place", sa.JSON, nullable=False),
        sa.Column("restarts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("stretch", sa.Integer, nullable=False, server_default="0"),
        sa.Column("begins", sa.JSON, nullable=False),
        sa.Column("rows", sa.Integer, nullable=False, server_default="0"),
        sa.Column("bad", sa.Integer, nullable=False, server_default="0"),
        sa.Column("trouble", sa.Text, nullable=False, server_default=""),
        sa.Column("read_at", sa.Float, nullable=False),
    )
    op.create_index("one_log", "logs", ["run_id", "path"], unique=True)
    op.create_table(
        "series",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("log_id", sa.Integer, sa.ForeignKey("logs.id"), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("stretch", sa.Integer, nullable=False),
        sa.Column("restarts", sa.Integer, nullable=False),
        sa.Column("first", sa.JSON, nullable=False),
        sa.Column("last", sa.JSON, nullable=False),
    )
    op.create_index("one_series", "series", ["log_id", "name"], unique=True)
    op.create_table(
        "points",
        sa.Column("series_id", sa.Integer, sa.ForeignKey("series.id"), primary_key=True),
        sa.Column("stretch", sa.Integer, primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("low_step", sa.Float),
        sa.Column("high_step", sa.Float),
        sa.Column("low_epoch", sa.Float),
        sa.Column("high_epoch", sa.Float),
        sa.Column("summary", sa.JSON, nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "attached",
        sa.Column("checkpoint_id", sa.Integer, sa.ForeignKey("checkpoints.id"), primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("value", sa.Float),
        sa.Column("step", sa.Integer),
        sa.Column("epoch", sa.Float),
        sa.Column("source", sa.Text, nullable=False),
    )
    op.create_table(
        "alarms",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("run_id", sa.Integer, sa.ForeignKey("runs.id"), nullable=False),
        sa.Column("kind", sa.String(24), nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("numbers", sa.JSON, nullable=False),
        sa.Column("causes", sa.JSON, nullable=False),
        sa.Column("step", sa.Integer),
        sa.Column("epoch", sa.Float),
        sa.Column("go_back_to", sa.Text),
        sa.Column("opened_at", sa.Float, nullable=False),
        sa.Column("updated_at", sa.Float, nullable=False),
        sa.Column("closed_at", sa.Float),
        sa.Column("told_at", sa.Float),
    )
    op.create_index("one_open_alarm", "alarms", ["run_id", "kind", "subject"], unique=True,
                    sqlite_where=sa.text("closed_at IS NULL"))
    op.create_table(
        "weight_scans",
        sa.Column("checkpoint_id", sa.Integer, sa.ForeignKey("checkpoints.id"), primary_key=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("tensors", sa.Integer, nullable=False),
        sa.Column("bytes", sa.Integer, nullable=False),
        sa.Column("bad", sa.JSON, nullable=False),
        sa.Column("bad_tensors", sa.Integer, nullable=False),
        sa.Column("words", sa.Text, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
    )
