"""What a person may ask for: pin, unpin, retry, approve, restore, purge. The same code whether a daemon runs or not.

Each takes the request's plain values and returns plain values for the reply; each raises CkptwatchError with the reason
when it cannot be done.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ckptwatch.core.amounts import parse_step
from ckptwatch.errors import RemovalRefused, UsageError
from ckptwatch.model import Checkpoint, CheckpointState, EvaluationState, Removal, RemovalState, Run
from ckptwatch.planning import assess
from ckptwatch.settings import Settings
from ckptwatch.stages.intake import Intake
from ckptwatch.stages.keeping import KeepingStage
from ckptwatch.store import checkpoints, evaluations, events, removals, runs
from ckptwatch.store.database import Connection, Database


class Commands:
    """Carries out one request at a time. `dirty(run_id)` asks for the run to be brought in order afterwards."""

    def __init__(
        self, db: Database, settings: Settings, keeping: KeepingStage, intakes: Mapping[Path, Intake],
        dirty: Callable[[int], None],
    ) -> None:
        self._db = db
        self._settings = settings
        self._keeping = keeping
        self._intakes = intakes
        self._dirty = dirty
        self._known: dict[str, Callable[[Mapping[str, Any], float], Mapping[str, Any]]] = {
            "pin": self._pin, "unpin": self._unpin, "retry": self._retry, "approve": self._approve,
            "restore": self._restore, "purge": self._purge,
        }

    def handle(self, request: Mapping[str, Any], *, now: float) -> Mapping[str, Any]:
        """Raises UsageError for an unknown command, CkptwatchError where it cannot be done."""
        command = self._known.get(str(request.get("command")))
        if command is None:
            raise UsageError("follow the request", f"unknown command {request.get('command')!r}",
                             hint=f"known: {', '.join(self._known)}")
        return command(request, now)

    def _pin(self, request: Mapping[str, Any], now: float) -> Mapping[str, Any]:
        by, why = str(request.get("by", "")), str(request.get("why") or "pinned by hand")
        with self._db.write() as conn:
            checkpoint = find_checkpoint(conn, str(request["target"]))
            _must_be_there(checkpoint, "pin")
            checkpoints.pin(conn, checkpoint.id, f"{by}: {why}")
            self._note(conn, checkpoint, "pinned", why, by, now)
        self._dirty(checkpoint.run_id)
        return {"path": str(checkpoint.path)}

    def _unpin(self, request: Mapping[str, Any], now: float) -> Mapping[str, Any]:
        with self._db.write() as conn:
            checkpoint = find_checkpoint(conn, str(request["target"]))
            if checkpoint.pinned_by is None:
                raise UsageError("unpin", "it is not pinned", path=checkpoint.path)
            checkpoints.pin(conn, checkpoint.id, None)
            self._note(conn, checkpoint, "unpinned", "unpinned by hand", str(request.get("by", "")), now)
        self._dirty(checkpoint.run_id)
        return {"path": str(checkpoint.path)}

    def _retry(self, request: Mapping[str, Any], now: float) -> Mapping[str, Any]:
        with self._db.write() as conn:
            checkpoint = find_checkpoint(conn, str(request["target"]))
            _must_be_there(checkpoint, "retry")
            found = evaluations.of_checkpoint(conn, checkpoint.id)
            again = [e for e in found if e.state in (EvaluationState.FAILED, EvaluationState.PENDING)] or [
                e for e in found if e.state is EvaluationState.DONE]
            count = sum(evaluations.retry(conn, e.id, now=now) for e in again)
            if not count:
                cause = "its evaluation is running" if found else "its run's configuration asks for no evaluation of it"
                raise UsageError("retry", cause, path=checkpoint.path, hint="see `ckptwatch status`")
            self._note(conn, checkpoint, "retried", f"{count} evaluations wait again", str(request.get("by", "")), now)
        self._dirty(checkpoint.run_id)
        return {"path": str(checkpoint.path), "evaluations": count}

    def _approve(self, request: Mapping[str, Any], now: float) -> Mapping[str, Any]:
        with self._db.write() as conn:
            run = find_run(conn, str(request["target"]))
            plan = assess(conn, run, self._settings, now=now).plan
            if not plan.held:
                raise UsageError("approve", "no plan of this run waits for approval", path=run.name,
                                 hint=f"see `ckptwatch plan {run.name}`")
            runs.approve(conn, run.id, [d.checkpoint.id for d in plan.removals])
            events.append(conn, now=now, kind="approved", by=str(request.get("by", "")), run=run.name, message=plan.held)
        self._dirty(run.id)
        return {"run": run.name, "removals": len(plan.removals), "bytes": plan.reclaimed}

    def _restore(self, request: Mapping[str, Any], now: float) -> Mapping[str, Any]:
        with self._db.read() as conn:
            checkpoint = find_checkpoint(conn, str(request["target"]), in_trash=True)
            removal = removals.of_checkpoint(conn, checkpoint.id)
            run = runs.run(conn, checkpoint.run_id)
        if removal is None:
            raise RemovalRefused("restore", "it was never in the trash", path=checkpoint.path,
                                 hint="`ckptwatch trash` lists what can be restored")
        intake = self._right_root(run, checkpoint.path)
        back = self._keeping.pruner(run.root).restore(removal, run=run.name, by=str(request.get("by", "")), now=now)
        intake.came_back(back.path, back.identity)
        self._dirty(run.id)
        return {"path": str(back.path), "bytes": removal.bytes}

    def _purge(self, request: Mapping[str, Any], now: float) -> Mapping[str, Any]:
        with self._db.read() as conn:
            entries = removals.in_state(conn, RemovalState.TRASHED)
            owners = {r.id: runs.run(conn, checkpoints.checkpoint(conn, r.checkpoint_id).run_id) for r in entries}
        purged, problems = [], []
        for removal in entries:
            run = owners[removal.id]
            try:
                self._right_root(run, removal.original)
                self._keeping.pruner(run.root).purge(removal, run=run.name, by=str(request.get("by", "")), now=now)
                purged.append(removal)
            except RemovalRefused as error:
                problems.append(str(error))
        return {"purged": len(purged), "bytes": sum(r.bytes for r in purged), "problems": problems}

    def _right_root(self, run: Run, path: Path) -> Intake:
        intake = self._intakes.get(run.root)
        if intake is None:
            raise RemovalRefused("touch", f"its root {run.root} is not in the configuration", path=path)
        if intake.problem:
            raise RemovalRefused("touch", intake.problem, path=path)
        return intake

    @staticmethod
    def _note(conn: Connection, checkpoint: Checkpoint, kind: str, message: str, by: str, now: float) -> None:
        events.append(conn, now=now, kind=kind, by=by, run=runs.run(conn, checkpoint.run_id).name, path=checkpoint.path,
                      message=message)


def _must_be_there(checkpoint: Checkpoint, operation: str) -> None:
    """Raises UsageError for a checkpoint that is in the trash or gone: a promise about it could not be kept."""
    if checkpoint.state is CheckpointState.TRASHED:
        raise UsageError(operation, "it is in the trash", path=checkpoint.path,
                         hint=f"bring it back, which pins it: ckptwatch restore {checkpoint.path}")
    if checkpoint.state not in checkpoints.LIVING:
        raise UsageError(operation, f"it is no longer there ({checkpoint.state})", path=checkpoint.path,
                         hint="`ckptwatch plan` lists what is")


def find_run(conn: Connection, name: str) -> Run:
    """The run a person means by its name or directory. Raises UsageError: none, or several roots have one."""
    found = runs.find(conn, name.rstrip("/")) or runs.find(conn, str(Path(name).absolute()))
    if not found:
        names = ", ".join(r.name for r in runs.all_runs(conn)[:8])
        raise UsageError("find run", "no run of that name is known", path=name, hint=f"known runs: {names or 'none yet'}")
    if len(found) > 1:
        raise UsageError("find run", "several roots have a run of that name", path=name,
                         hint="give its directory: " + " or ".join(str(r.path) for r in found))
    return found[0]


def find_checkpoint(conn: Connection, target: str, *, in_trash: bool = False) -> Checkpoint:
    """The checkpoint a person means by RUN@STEP or a path; an alias means what it points to.

    Raises UsageError if none is meant.
    """
    run_part, at, step_part = target.rpartition("@")
    if at and runs.find(conn, run_part):
        try:
            step = parse_step(step_part)
        except ValueError as error:
            raise UsageError("find checkpoint", f"{step_part!r} is no step", path=target) from error
        found = checkpoints.by_step(conn, find_run(conn, run_part).id, step, in_trash=in_trash)
    else:
        path = Path(target).absolute()
        found = checkpoints.by_path(conn, path, in_trash=in_trash)
        found = found or checkpoints.by_path(conn, path.resolve(), in_trash=in_trash)
    if found is None:
        raise UsageError("find checkpoint", "not known", path=target,
                         hint="give its path, or RUN@STEP; `ckptwatch rank RUN` lists a run's checkpoints")
    return found


def trash_entries(conn: Connection) -> tuple[Removal, ...]:
    """What can be restored, soonest to be purged first."""
    return tuple(sorted(removals.in_state(conn, RemovalState.TRASHED), key=lambda r: r.purge_at))
