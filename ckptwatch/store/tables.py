"""The tables as SQLAlchemy Core sees them. The migrations create them; a test holds the two against each other."""

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    text,
)

metadata = MetaData()

KEPT = "state IN ('complete', 'incomplete', 'trashed')"  # word for word in a query, or SQLite does not use the index

roots = Table(
    "roots", metadata,
    Column("path", Text, primary_key=True),
    Column("uuid", String(36), nullable=False),  # of the marker file below the root
    Column("device", Integer, nullable=False),
    Column("problem", Text, nullable=False, server_default=""),  # why the root is not acted on
    Column("scanned_at", Float),
)

runs = Table(
    "runs", metadata,
    Column("id", Integer, primary_key=True),
    Column("root", ForeignKey("roots.path"), nullable=False),
    Column("name", Text, nullable=False),
    Column("path", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("newest_at", Float, nullable=False),  # when its newest checkpoint was found
    Column("ended_at", Float),
    Column("approved", JSON, nullable=False, server_default="[]"),  # checkpoint ids whose removal a person approved
    # What status shows without planning anew; written by the daemon after each plan.
    Column("best_checkpoint_id", Integer),
    Column("best_metric", Text),
    Column("best_value", Float),
    Column("best_variant", Text),
    Column("last_checkpoint_id", Integer),
    Column("reclaimable_bytes", Integer, nullable=False, server_default="0"),
    Column("planned_removals", Integer, nullable=False, server_default="0"),
    Column("held", Text, nullable=False, server_default=""),
    Index("runs_by_name", "root", "name", unique=True),
)

checkpoints = Table(
    "checkpoints", metadata,
    Column("id", Integer, primary_key=True),
    Column("run_id", ForeignKey("runs.id"), nullable=False),
    Column("path", Text, nullable=False),
    Column("format", Text, nullable=False),
    Column("state", String(16), nullable=False),  # model.CHECKPOINT_TRANSITIONS
    Column("evidence", Text, nullable=False),
    Column("device", Integer, nullable=False),
    Column("inode", Integer, nullable=False),
    Column("size", Integer, nullable=False),
    Column("mtime_ns", Integer, nullable=False),
    Column("fingerprint", Text, nullable=False),
    Column("role", String(16), nullable=False),
    Column("generation", Integer, nullable=False),
    Column("step", Integer),
    Column("epoch", Integer),
    Column("metrics", JSON, nullable=False),
    Column("variants", JSON, nullable=False),
    Column("found_at", Float, nullable=False),
    Column("pinned_by", Text),
    Column("members", JSON, nullable=False, server_default="[]"),  # names in the directory of `path`, for a set of files
    Column("content_keys", JSON, nullable=False, server_default="[]"),  # Checkpoint.keys
    # One living row per path: what is on disk, or in the trash under its name, is recorded once.
    Index("living_path", "path", unique=True, sqlite_where=text("state IN ('incomplete', 'complete')")),
    Index("checkpoints_of_run", "run_id"),
    # What status counts and sums, without the long tail of those that are no more.
    Index("checkpoints_kept", "run_id", "state", "size", sqlite_where=text(KEPT)),
)

evaluations = Table(
    "evaluations", metadata,
    Column("id", Integer, primary_key=True),
    Column("checkpoint_id", ForeignKey("checkpoints.id"), nullable=False),
    Column("variant", Text, nullable=False),
    Column("recipe", Text, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("state", String(16), nullable=False),  # model.EVALUATION_TRANSITIONS
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("available_at", Float, nullable=False),
    Column("queued_at", Float, nullable=False),
    Column("started_at", Float),
    Column("finished_at", Float),
    Column("seconds", Float),
    Column("failure_kind", String(16)),
    Column("failure_message", Text),
    Column("failure_hint", Text),
    Column("log", Text),
    Column("samples", Text),
    Column("published", Boolean, nullable=False, server_default="0"),
    Index("one_evaluation", "checkpoint_id", "variant", "digest", unique=True),
    Index("evaluations_by_state", "state", "available_at"),
)

scores = Table(
    "scores", metadata,
    Column("evaluation_id", ForeignKey("evaluations.id"), primary_key=True),
    Column("metric", Text, primary_key=True),
    Column("value", Float),  # NULL stands for NaN: SQLite has none
    Column("low", Float),
    Column("high", Float),
    Column("n", Integer),
    Column("mode", String(3)),
    Column("definition", Text, nullable=False),
)

logs = Table(
    "logs", metadata,
    Column("id", Integer, primary_key=True),
    Column("run_id", ForeignKey("runs.id"), nullable=False),
    Column("path", Text, nullable=False),
    Column("dialect", Text, nullable=False),
    Column("place", JSON, nullable=False),  # logs.follower.Place: how far it has been read
    Column("restarts", Integer, nullable=False, server_default="0"),  # how often the file was another, or written anew
    Column("stretch", Integer, nullable=False, server_default="0"),   # +1 each time the steps in it start over
    Column("begins", JSON, nullable=False),  # stretch → time before which none of it was written, 0 where that is not known
    Column("rows", Integer, nullable=False, server_default="0"),
    Column("bad", Integer, nullable=False, server_default="0"),  # records that could not be read
    Column("trouble", Text, nullable=False, server_default=""),
    Column("read_at", Float, nullable=False),
    Index("one_log", "run_id", "path", unique=True),
)

series = Table(
    "series", metadata,
    Column("id", Integer, primary_key=True),
    Column("log_id", ForeignKey("logs.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("stretch", Integer, nullable=False),   # and restarts: of its log, when it was last added to
    Column("restarts", Integer, nullable=False),
    Column("first", JSON, nullable=False),        # point of that stretch
    Column("last", JSON, nullable=False),
    Index("one_series", "log_id", "name", unique=True),
)

points = Table(
    "points", metadata,
    Column("series_id", ForeignKey("series.id"), primary_key=True),
    Column("stretch", Integer, primary_key=True),
    Column("number", Integer, primary_key=True),  # of the piece, from 0; all but the last one are full
    Column("low_step", Float),  # the range of its steps and epochs, where it has any
    Column("high_step", Float),
    Column("low_epoch", Float),
    Column("high_epoch", Float),
    Column("summary", JSON, nullable=False),      # core.series.Summary
    Column("data", LargeBinary, nullable=False),  # step, epoch, value as float64, NaN for what is not known
)

attached = Table(
    "attached", metadata,
    Column("checkpoint_id", ForeignKey("checkpoints.id"), primary_key=True),
    Column("name", Text, primary_key=True),
    Column("value", Float),  # NULL stands for NaN and Inf
    Column("step", Integer),
    Column("epoch", Float),
    Column("source", Text, nullable=False),
)

alarms = Table(
    "alarms", metadata,
    Column("id", Integer, primary_key=True),
    Column("run_id", ForeignKey("runs.id"), nullable=False),
    Column("kind", String(24), nullable=False),  # model.AlarmKind
    Column("subject", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("numbers", JSON, nullable=False),
    Column("causes", JSON, nullable=False),
    Column("step", Integer),
    Column("epoch", Float),
    Column("go_back_to", Text),
    Column("opened_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    Column("closed_at", Float),
    Column("told_at", Float),  # when a notification about it last went out
    Index("one_open_alarm", "run_id", "kind", "subject", unique=True, sqlite_where=text("closed_at IS NULL")),
)

weight_scans = Table(
    "weight_scans", metadata,
    Column("checkpoint_id", ForeignKey("checkpoints.id"), primary_key=True),
    Column("state", String(16), nullable=False),  # model.WeightScan
    Column("tensors", Integer, nullable=False),
    Column("bytes", Integer, nullable=False),
    Column("bad", JSON, nullable=False),
    Column("bad_tensors", Integer, nullable=False),
    Column("words", Text, nullable=False),
    Column("at", Float, nullable=False),
)

removals = Table(
    "removals", metadata,
    Column("id", Integer, primary_key=True),
    Column("checkpoint_id", ForeignKey("checkpoints.id"), nullable=False),
    Column("original", Text, nullable=False),
    Column("trash", Text, nullable=False),
    Column("state", String(16), nullable=False),  # model.RemovalState
    Column("reason", Text, nullable=False),
    Column("bytes", Integer, nullable=False),
    Column("at", Float, nullable=False),
    Column("purge_at", Float, nullable=False),
    # A checkpoint is on its way to, in, or out of the trash at most once at a time.
    Index("one_open_removal", "checkpoint_id", unique=True,
          sqlite_where=text("state IN ('intended', 'trashed', 'restoring', 'purging')")),
)

events = Table(
    "events", metadata,
    Column("id", Integer, primary_key=True),
    Column("at", Float, nullable=False),
    Column("kind", Text, nullable=False),
    Column("by", Text, nullable=False),
    Column("run", Text),
    Column("path", Text),
    Column("message", Text, nullable=False),
    Column("data", JSON, nullable=False),
    Index("events_of_run", "run", "id"),
)

recipes = Table(
    "recipes", metadata,
    Column("name", Text, primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("problem", Text, nullable=False, server_default=""),  # why it cannot be used at present
    Column("at", Float, nullable=False),
)

daemon = Table(
    "daemon", metadata,
    Column("id", Integer, primary_key=True),  # always 1
    Column("pid", Integer, nullable=False),
    Column("version", Text, nullable=False),
    Column("since", Float, nullable=False),
    Column("heartbeat", Float, nullable=False),
    Column("stopped_at", Float),
    Column("last_words", Text, nullable=False, server_default=""),
)
