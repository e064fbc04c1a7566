"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "roots",
        sa.Column("path", sa.Text, primary_key=True),
        sa.Column("uuid", sa.String(36), nullable=False),
        sa.Column("device", sa.Integer, nullable=False),
        sa.Column("problem", sa.Text, nullable=False, server_default=""),
        sa.Column("scanned_at", sa.Float),
    )
    op.create_table(
        "runs",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("root", sa.Text, sa.ForeignKey("roots.path"), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("newest_at", sa.Float, nullable=False),
        sa.Column("ended_at", sa.Float),
        sa.Column("approved", sa.JSON, nullable=False, server_default="[]"),
        sa.Column("best_checkpoint_id", sa.Integer),
        sa.Column("best_metric", sa.Text),
        sa.Column("best_value", sa.Float),
        sa.Column("best_variant", sa.Text),
        sa.Column("last_checkpoint_id", sa.Integer),
        sa.Column("reclaimable_bytes", sa.Integer, nullable=False, server_default="0"),
        sa.Column("planned_removals", sa.Integer, nullable=False, server_default="0"),
        sa.Column("held", sa.Text, nullable=False, server_default=""),
    )
    op.create_index("runs_by_name", "runs", ["root", "name"], unique=True)
    op.create_table(
        "checkpoints",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("run_id", sa.Integer, sa.ForeignKey("runs.id"), nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("format", sa.Text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("evidence", sa.Text, nullable=False),
        sa.Column("device", sa.Integer, nullable=False),
        sa.Column("inode", sa.Integer, nullable=False),
        sa.Column("size", sa.Integer, nullable=False),
        sa.Column("mtime_ns", sa.Integer, nullable=False),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("step", sa.Integer),
        sa.Column("epoch", sa.Integer),
        sa.Column("metrics", sa.JSON, nullable=False),
        sa.Column("variants", sa.JSON, nullable=False),
        sa.Column("found_at", sa.Float, nullable=False),
        sa.Column("pinned_by", sa.Text),
    )
    op.create_index("living_path", "checkpoints", ["path"], unique=True,
                    sqlite_where=sa.text("state IN ('incomplete', 'complete')"))
    op.create_index("checkpoints_of_run", "checkpoints", ["run_id"])
    op.create_index("checkpoints_kept", "checkpoints", ["run_id", "state", "size"],
                    sqlite_where=sa.text("state IN ('complete', 'incomplete', 'trashed')"))
    op.create_table(
        "evaluations",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("checkpoint_id", sa.Integer, sa.ForeignKey("checkpoints.id"), nullable=False),
        sa.Column("variant", sa.Text, nullable=False),
        sa.Column("recipe", sa.Text, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("available_at", sa.Float, nullable=False),
        sa.Column("queued_at", sa.Float, nullable=False),
        sa.Column("started_at", sa.Float),
        sa.Column("finished_at", sa.Float),
        sa.Column("seconds", sa.Float),
        sa.Column("failure_kind", sa.String(16)),
        sa.Column("failure_message", sa.Text),
        sa.Column("failure_hint", sa.Text),
        sa.Column("log", sa.Text),
        sa.Column("samples", sa.Text),
        sa.Column("published", sa.Boolean, nullable=False, server_default="0"),
    )
    op.create_index("one_evaluation", "evaluations", ["checkpoint_id", "variant", "digest"], unique=True)
    op.create_index("evaluations_by_state", "evaluations", ["state", "available_at"])
    op.create_table(
        "scores",
        sa.Column("evaluation_id", sa.Integer, sa.ForeignKey("evaluations.id"), primary_key=True),
        sa.Column("metric", sa.Text, primary_key=True),
        sa.Column("value", sa.Float),
        sa.Column("low", sa.Float),
        sa.Column("high", sa.Float),
        sa.Column("n", sa.Integer),
        sa.Column("mode", sa.String(3)),
        sa.Column("definition", sa.Text, nullable=False),
    )
    op.create_table(
        "removals",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("checkpoint_id", sa.Integer, sa.ForeignKey("checkpoints.id"), nullable=False),
        sa.Column("original", sa.Text, nullable=False),
        sa.Column("trash", sa.Text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("bytes", sa.Integer, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("purge_at", sa.Float, nullable=False),
    )
    op.create_index("one_open_removal", "removals", ["checkpoint_id"], unique=True,
                    sqlite_where=sa.text("state IN ('intended', 'trashed', 'restoring', 'purging')"))
    op.create_table(
        "events",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("by", sa.Text, nullable=False),
        sa.Column("run", sa.Text),
        sa.Column("path", sa.Text),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("data", sa.JSON, nullable=False),
    )
    op.create_index("events_of_run", "events", ["run", "id"])
    # Append-only is a promise to the user, so the database keeps it, not the program.
    for action in ("UPDATE", "DELETE"):
        op.execute(f"CREATE TRIGGER events_no_{action.lower()} BEFORE {action} ON events "
                   "BEGIN SELECT RAISE(ABORT, 'the event history is append-only'); END")
    op.create_table(
        "recipes",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("problem", sa.Text, nullable=False, server_default=""),
        sa.Column("at", sa.Float, nullable=False),
    )
    op.create_table(
        "daemon",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("since", sa.Float, nullable=False),
        sa.Column("heartbeat", sa.Float, nullable=False),
        sa.Column("stopped_at", sa.Float),
        sa.Column("last_words", sa.Text, nullable=False, server_default=""),
    )


def downgrade() -> None:
    raise NotImplementedError("there is no schema before the first")
