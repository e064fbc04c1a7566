"""Which logged values belong to which checkpoints of a run, as the record has both."""

import math
import re
from collections.abc import Callable, Sequence

from ckptwatch.core.attaching import NEAREST, Source, Span, choose, owner, spans
from ckptwatch.core.logged import direction
from ckptwatch.core.series import LogPoint
from ckptwatch.model import Attached, Checkpoint, CheckpointState, Logged, Run
from ckptwatch.store import checkpoints, logs
from ckptwatch.store.database import Connection
from ckptwatch.store.logs import Log, Track

Values = dict[str, Attached]
MOST_NAMES = 300  # of a run's that are given to checkpoints: losses and metrics first


def belonging(conn: Connection, run: Run, logged: Logged, *, wanted: Callable[[Checkpoint], bool]) -> dict[int, Values]:
    """Checkpoint id → its logged values, of those `wanted` of a run for which they are not the ones recorded."""
    every = [c for c in checkpoints.of_run(conn, run.id) if c.state is not CheckpointState.INCOMPLETE]
    chosen = {c.id for c in every if c.state is CheckpointState.COMPLETE and wanted(c)}
    if not chosen:
        return {}
    # Names such as weights_05.pt count what the trainer counts: epochs, where its logs count nothing else.
    steps = logs.count_steps(conn, run.id)
    places = spans([(c.generation, c.step, c.epoch if steps or c.epoch is not None else c.step) for c in every])
    by_name: dict[str, list[Track]] = {}
    for track in logs.tracks(conn, run.id):
        by_name.setdefault(track.name, []).append(track)
    names = sorted(by_name, key=lambda name: (direction(name) is None, name))[:MOST_NAMES]
    stretches = _Stretches(conn, run)
    known = logs.attached_in(conn, run.id)
    changes = {}
    for checkpoint, span in zip(every, places, strict=True):
        if checkpoint.id not in chosen:
            continue
        values: Values = {}
        for name in names:
            if name in checkpoint.metrics:
                continue
            found = _value_of(conn, checkpoint, span, by_name[name], stretches, logged.attach, newest=every[-1].generation)
            if found is not None:
                track, point = found
                value = point.value if math.isfinite(point.value) else math.nan  # as the record has it
                values[name] = Attached(value=value, step=point.step, epoch=point.epoch,
                                        source=logs.shown(track.log.path, run.path))
        if _comparable(values) != _comparable(known.get(checkpoint.id, {})):
            changes[checkpoint.id] = values
    return changes


def _comparable(values: Values) -> dict[str, str]:
    """NaN is equal to no number, not even to itself."""
    return {name: repr(value) for name, value in values.items()}


class _Stretches:
    """The stretches of a run's logs, looked up once."""

    def __init__(self, conn: Connection, run: Run) -> None:
        self._conn = conn
        self._run = run
        self._found: dict[tuple[int, bool], list[Source]] = {}

    def of(self, log: Log, *, epochs: bool) -> list[Source]:
        key = (log.id, epochs)
        if key not in self._found:
            reach = logs.reach(self._conn, log.id, epochs=epochs) if log.stretch else {0: None}
            shown = logs.shown(log.path, self._run.path)
            self._found[key] = [
                Source(log=log.id, stretch=stretch, family=f"{log.dialect} {re.sub(r'[0-9]+', '#', shown)}",
                       begun=log.begins.get(stretch, 0.0), written=log.place.get("mtime_ns", 0) / 1e9, reach=span,
                       validation=bool(_VALIDATION.search(shown)))
                for stretch, span in reach.items()]
        return self._found[key]


_VALIDATION = re.compile(r"(?<![a-z])(?:val|valid|validation|eval|test|dev)(?![a-z])", re.IGNORECASE)


def _value_of(
    conn: Connection, checkpoint: Checkpoint, span: Span, tracks: Sequence[Track], stretches: _Stretches, attach: str, *,
    newest: int,
) -> tuple[Track, LogPoint] | None:
    """A name's point that is the checkpoint's, with its log; by steps where both have any, else by epochs."""
    saved = checkpoint.identity.mtime_ns / 1e9
    for epochs, count in ((False, span.step), (True, span.epoch)):
        if count is None:
            continue
        sources = [s for track in tracks for s in stretches.of(track.log, epochs=epochs) if s.stretch <= track.stretch]
        chosen = owner(sources, count, saved, generation=checkpoint.generation, newest=newest)
        if chosen is None:
            continue
        track = next(t for t in tracks if t.log.id == chosen.log)
        around = logs.near(conn, track, chosen.stretch, count, epochs=epochs, beyond=attach == NEAREST)
        point = choose(around, span, attach=attach)
        if point is not None:
            return track, point
    return None
