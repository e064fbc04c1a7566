"""From an assessment to the disk: queue what is due, move aliases, then remove, then publish. In that order, always."""

import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from ckptwatch.apply.linker import AliasError, apply_aliases
from ckptwatch.apply.places import run_dir
from ckptwatch.apply.pruner import Pruner
from ckptwatch.core.naming import suffix_of
from ckptwatch.errors import RemovalRefused
from ckptwatch.model import (
    Action,
    Alarm,
    Checkpoint,
    CheckpointState,
    Contender,
    Decision,
    Evaluation,
    Place,
    RemovalState,
    Role,
    Run,
)
from ckptwatch.planning import Assessment, assess, with_composite
from ckptwatch.publish.samples import publish_samples, samples_directory, write_overview
from ckptwatch.publish.scalars import Point, Scalars, points_of
from ckptwatch.publish.stats import statistics_of, write_stats
from ckptwatch.publish.summary import summary_lines
from ckptwatch.publish.tracker import write_results, write_tracker
from ckptwatch.settings import Settings
from ckptwatch.stages.health import News
from ckptwatch.stages.intake import Intake
from ckptwatch.store import alarms, checkpoints, evaluations, events, logs, removals, runs
from ckptwatch.store.database import Database
from ckptwatch.watch.sightings import sight_path

log = logging.getLogger(__name__)

AT_A_TIME = 50  # removals of one run before the daemon listens again; each takes about 10 ms of syncing


class KeepingStage:
    """Acts on runs, one at a time. `dry_run` decides everything and changes nothing below the roots."""

    def __init__(self, db: Database, settings: Settings, intakes: dict[Path, Intake], *, dry_run: bool = False) -> None:
        self._db = db
        self._settings = settings
        self._intakes = intakes
        self._passive = dry_run or settings.observe_only
        self._pruners = {root: Pruner(db, root) for root in intakes}
        self._scalars: dict[int, Scalars] = {}
        self._recovered: set[Path] = set()
        self._told: dict[int, object] = {}     # run → what the log last said of its best
        self._refused: dict[int, str] = {}     # checkpoint → why it could not be removed, said once
        self._alias_problems: dict[int, str] = {}
        self._more: set[int] = set()           # runs with removals left for the next turn
        self._unfinished: set[int] = set()     # runs with a removal that was refused

    @property
    def alias_problems(self) -> dict[int, str]:
        """Run id → why its aliases could not be set."""
        return self._alias_problems

    def pruner(self, root: Path) -> Pruner:
        return self._pruners[root]

    def recover(self, root: Path, *, now: float) -> None:
        """Finish the removals of a root that a crash interrupted, once, as soon as the root is the right one."""
        if root in self._recovered or self._passive or self._intakes[root].problem:
            return
        if count := self._pruners[root].recover(now=now):
            log.info("%s: finished %d interrupted removals", root, count)
        self._recovered.add(root)

    def process(self, run_id: int, *, now: float) -> Assessment | None:
        """Bring one run in order. None if its root has a problem: then nothing about it is decided."""
        with self._db.read() as conn:
            run = runs.run(conn, run_id)
        intake = self._intakes.get(run.root)
        if intake is None or intake.problem:
            return None
        self.recover(run.root, now=now)
        assessment = self._enqueue(run, now)
        if not self._passive:
            self._link(assessment, now)
            if run_id not in self._alias_problems:
                self._prune(assessment, intake, now)
            self._publish(assessment, now)
        self._record_standing(assessment)
        self._tell(assessment)
        return assessment

    def _enqueue(self, run: Run, now: float) -> Assessment:
        with self._db.read() as conn:
            assessment = assess(conn, run, self._settings, now=now)
        if not assessment.due or assessment.stand is None or assessment.recipe is None:
            return assessment
        with self._db.write() as conn:
            for item in assessment.due:
                evaluations.enqueue(conn, item.checkpoint_id, variant=item.variant, recipe=assessment.recipe.name,
                                    digest=assessment.stand.digest, now=now)
            return assess(conn, run, self._settings, now=now)

    # ---- aliases -------------------------------------------------------------------------------------------------

    def _link(self, a: Assessment, now: float) -> None:
        try:
            if a.alias_problem:
                raise AliasError("set aliases", a.alias_problem, hint="take away aliases.directory; then they go below "
                                 f"{run_dir(a.run.root, a.run.name)}")
            changes = apply_aliases(a.aliases, record_dir=run_dir(a.run.root, a.run.name))
        except AliasError as error:
            if self._alias_problems.get(a.run.id) != str(error):
                log.error("%s: %s; nothing is removed from this run meanwhile", a.run.name, error)
            self._alias_problems[a.run.id] = str(error)
            return
        self._alias_problems.pop(a.run.id, None)
        if changes:
            with self._db.write() as conn:
                for change in changes:
                    events.append(conn, now=now, kind="alias", run=a.run.name, message=change)
            log.info("%s: %s", a.run.name, ", ".join(changes))

    # ---- removals ------------------------------------------------------------------------------------------------

    def _prune(self, a: Assessment, intake: Intake, now: float) -> None:
        if a.plan.held:
            return
        # Those refused before come last, and they alone are no reason for another turn at once: it would end the same.
        tried = {checkpoint_id: turn for turn, checkpoint_id in enumerate(self._refused)}  # longest ago first
        removals = sorted(a.plan.removals, key=lambda d: tried.get(d.checkpoint.id, -1))
        turn = removals[:AT_A_TIME]
        news = any(d.checkpoint.id not in self._refused for d in turn)
        links = intake.link_targets() if turn else {}
        for decision in turn:
            self._remove(decision, a, intake, links, now)
        if len(removals) > len(turn) and news:
            self._more.add(a.run.id)

    def _remove(self, decision: Decision, a: Assessment, intake: Intake, links: Mapping[Path, Path], now: float) -> None:
        checkpoint = decision.checkpoint
        reason = "; ".join(decision.reasons)
        try:
            self._last_look(checkpoint, a, links)
            self._pruners[a.run.root].remove(checkpoint, run=a.run.name, reason=reason, grace=a.rule.grace, now=now)
        except RemovalRefused as error:
            if self._refused.get(checkpoint.id) != error.cause:
                log.warning("%s: %s", a.run.name, error)
            self._refused.pop(checkpoint.id, None)
            self._refused[checkpoint.id] = error.cause
            self._unfinished.add(a.run.id)
            return
        intake.moved_away(checkpoint.path)
        log.info("%s: removed %s to trash: %s", a.run.name, checkpoint.path.name, reason)

    def _last_look(self, checkpoint: Checkpoint, a: Assessment, links: Mapping[Path, Path]) -> None:
        """The last refusals stand next to the deletion, whatever the plan says (design: invariant 2)."""
        def refuse(cause: str) -> RemovalRefused:
            return RemovalRefused("remove", cause, path=checkpoint.path, hint="it is kept")

        if a.rule.keep is None:
            raise refuse("its run has no keep rule")
        # At least one other whole checkpoint must be there, on disk, unchanged, at this moment.
        if not any(d.action is Action.KEEP and _whole_on_disk(d.checkpoint) for d in a.plan.decisions):
            raise refuse("it is the only checkpoint left of its run")
        if any(alias.target == checkpoint.path for alias in a.aliases):
            raise refuse("an alias points to it")
        entries = {Path(os.path.realpath(entry)) for entry in checkpoint.entries}
        for target, link in links.items():  # of another run, perhaps: only here are all links of the root looked at
            if not entries.isdisjoint((target, *target.parents)):
                raise refuse(f"{link} links there")

    def more(self) -> set[int]:
        """Runs whose plan was carried out only in part, so that messages get their turn in between."""
        more, self._more = self._more, set()
        return more

    def time_dependent(self) -> set[int]:
        """Runs to look at again although nothing happened: what was refused may go now, what was young is old."""
        with self._db.read() as conn:
            every = runs.all_runs(conn)
        aging = {r.id for r in every if (keep := self._settings.rule_for(r.name).keep) and keep.within is not None}
        again = self._unfinished | set(self._alias_problems)
        self._unfinished = set()
        return aging | again

    def purge_due(self, *, now: float) -> set[int]:
        """Empty the trash of what has outlived its grace period. Returns ids of the runs concerned."""
        with self._db.read() as conn:
            due = [r for r in removals.in_state(conn, RemovalState.TRASHED) if r.purge_at <= now]
            owner = {r.id: checkpoints.checkpoint(conn, r.checkpoint_id).run_id for r in due}
            roots = {r.id: runs.run(conn, owner[r.id]).root for r in due}
        touched = set()
        for removal in due if not self._passive else ():
            intake = self._intakes.get(roots[removal.id])
            if intake is None or intake.problem:
                continue
            try:
                self._pruners[roots[removal.id]].purge(removal, run=removal.run, by="ckptwatch", now=now)
            except RemovalRefused as error:
                log.warning("%s", error)
                continue
            touched.add(owner[removal.id])
            log.info("%s: purged %s from trash", removal.run, removal.original.name)
        return touched

    # ---- publishing ----------------------------------------------------------------------------------------------

    def _publish(self, a: Assessment, now: float) -> None:
        directory = run_dir(a.run.root, a.run.name)
        keep_best = a.rule.best_count
        try:
            if self._settings.publish.json and a.ranking is not None:
                write_tracker(directory, run=a.run.name, ranking=a.ranking, keep_best=keep_best,
                              checkpoints=a.checkpoints, now=now)
            fresh = [e for e in a.evaluations if e.state == "done" and not e.published]
            for evaluation in fresh:
                self._publish_evaluation(evaluation, a, directory)
            if fresh and self._settings.publish.samples:
                self._overview(a, directory)
            if self._settings.publish.tensorboard:
                self._publish_scalars(a)
        except OSError as error:
            log.error("%s: cannot publish below %s: %s", a.run.name, directory, error.strerror or error)

    def _publish_evaluation(self, evaluation: Evaluation, a: Assessment, directory: Path) -> None:
        contender = _contender(a, evaluation)
        target = None
        if contender is not None and self._settings.publish.samples and evaluation.samples and evaluation.samples.is_dir():
            stem = contender.path.name.removesuffix(suffix_of(contender.path.name)) or contender.path.name
            checkpoint = a.checkpoints.get(contender.checkpoint_id)
            if checkpoint is not None and checkpoint.role in (Role.LAST, Role.BEST):
                # The next one of this name gets pictures of its own.
                count = checkpoint.epoch if checkpoint.step is None else checkpoint.step
                stem = stem if count is None else f"{stem}-{count}"
            target = samples_directory(directory, stem, contender.variant)
            publish_samples(evaluation.samples, target)
        with self._db.write() as conn:
            evaluations.mark_published(conn, evaluation.id, samples=target)
        shutil.rmtree(self._settings.state_dir / "work" / str(evaluation.id), ignore_errors=True)

    def _publish_scalars(self, a: Assessment) -> None:
        """All points of the run; only those that are new, or whose IsBest changed, are written."""
        best = a.ranking.best if a.ranking else None
        finished = {(e.checkpoint_id, e.variant): e.finished_at or 0.0 for e in a.evaluations if e.scores}
        points = [
            point for c in a.contenders if c.scores and c.digest is not None
            for point in points_of(c, is_best=best is not None and _same(best, c),
                                   wall_time=finished.get((c.checkpoint_id, c.variant), 0.0))
        ]
        if points:
            self._scalars_of(a.run).reconcile(points)

    def draw_alarms(self, news: News) -> None:
        """Into TensorBoard: 1 where an alarm was raised, 0 where it was over."""
        if self._passive or not self._settings.publish.tensorboard:
            return
        begun = [(a, a.symptom.step if a.symptom.step is not None else a.symptom.epoch) for a in news.raised]
        points = [Point(tag=_alarm_tag(a), step=int(news.reached if since is None else since), value=1.0,
                        wall_time=a.opened_at) for a, since in begun]
        points += [Point(tag=_alarm_tag(a), step=news.reached, value=0.0, wall_time=a.updated_at) for a in news.closed]
        try:
            self._scalars_of(news.run).reconcile(points)
        except OSError as error:
            log.error("%s: cannot draw alarms: %s", news.run.name, error.strerror or error)

    def _overview(self, a: Assessment, directory: Path) -> None:
        """One sheet with a row of samples per evaluated checkpoint, removed ones included, in the run's order."""
        metric = a.ranking.metric if a.ranking else ""
        rows = []
        with self._db.read() as conn:
            for e in evaluations.of_checkpoints_in(conn, a.run.id):
                if e.samples is None or not e.samples.is_dir():
                    continue
                c = checkpoints.checkpoint(conn, e.checkpoint_id)
                score = (with_composite(e.scores, a.recipe) if a.recipe else e.scores).get(metric)
                count = str(c.step) if c.step is not None else f"epoch {c.epoch}"
                label = "\n".join(filter(None, (count, e.variant, f"{score.value:.4g}" if score else "")))
                rows.append((c.order, label, e.samples))
        if rows:
            rows.sort(key=lambda r: r[0])
            folder = directory / "evaluation_samples"
            write_overview(folder, [(label, samples) for _, label, samples in rows], folder / "overview.jpg")

    def _scalars_of(self, run: Run) -> Scalars:
        if run.id not in self._scalars:
            self._scalars[run.id] = Scalars(run_dir(run.root, run.name) / "tensorboard")
        return self._scalars[run.id]

    # ---- the end of a run ----------------------------------------------------------------------------------------

    def end_silent_runs(self, *, now: float, at_once: bool = False) -> set[int]:
        """Runs without a new checkpoint for long, or with a final one, have ended: write their results. Returns their
        ids."""
        ended = set()
        with self._db.read() as conn:
            alive = runs.silent(conn)
            waiting = {r.run_id for r in evaluations.waiting(conn)} | set(evaluations.running_per_run(conn))
        for run, newest_at in alive:
            rule = self._settings.rule_for(run.name)
            if run.id in waiting or not (at_once or self._is_silent(run, newest_at, now - rule.ended_after)):
                continue
            why = "processed once" if at_once else f"no new checkpoint for {(now - newest_at) / 3600:.1f} h"
            self._end(run, why, now)
            ended.add(run.id)
        return ended

    def _is_silent(self, run: Run, newest_at: float, since: float) -> bool:
        """Neither a checkpoint nor a line in a log for so long: some trainers save only every few hours."""
        if newest_at > since:
            return False
        with self._db.read() as conn:
            return (logs.written_at(conn, run.id) or 0.0) <= since

    def _end(self, run: Run, why: str, now: float) -> None:
        intake = self._intakes.get(run.root)
        if intake is None or intake.problem:
            return
        with self._db.read() as conn:
            a = assess(conn, run, self._settings, now=now)
        if a.ranking is not None:
            for line in summary_lines(run.name, a.ranking, a.rule.best_count):
                log.info("%s", line)
            if self._settings.publish.json and not self._passive:
                try:
                    write_results(run_dir(run.root, run.name), run=run.name, ranking=a.ranking, ended=why,
                                  keep_best=a.rule.best_count, checkpoints=a.checkpoints, now=now)
                except OSError as error:
                    log.error("%s: cannot write results: %s", run.name, error.strerror or error)
        if not self._passive:
            self._write_stats(run)
        with self._db.write() as conn:
            runs.end(conn, run.id, now=now)
            events.append(conn, now=now, kind="ended", run=run.name, message=why)

    def _write_stats(self, run: Run) -> None:
        with self._db.read() as conn:
            statistics = statistics_of(run.name, logs.summaries(conn, run.id), alarms.of_run(conn, run.id))
        if not statistics.losses and not statistics.metrics:
            return
        directory = run_dir(run.root, run.name)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            write_stats(directory, statistics)
        except OSError as error:
            log.error("%s: cannot write its statistics: %s", run.name, error.strerror or error)

    # ---- what people see -----------------------------------------------------------------------------------------

    def _record_standing(self, a: Assessment) -> None:
        best = a.ranking.best if a.ranking else None
        standing = runs.Standing(
            best_checkpoint_id=best.contender.checkpoint_id if best else None,
            best_metric=best.score.metric if best else None, best_value=best.score.value if best else None,
            best_variant=best.contender.variant if best else None,
            last_checkpoint_id=a.last.id if a.last else None,
            # What is held or was refused is still there to be reclaimed.
            reclaimable_bytes=sum(d.checkpoint.identity.size for d in a.plan.removals if d.checkpoint.path.exists()),
            planned_removals=sum(d.checkpoint.path.exists() for d in a.plan.removals), held=a.plan.held)
        with self._db.write() as conn:
            if runs.standing(conn, a.run.id) != standing:
                runs.record_standing(conn, a.run.id, standing)

    def _tell(self, a: Assessment) -> None:
        best = a.ranking.best if a.ranking else None
        key = (best.contender.checkpoint_id, best.contender.variant, a.plan.held) if best else a.plan.held
        if self._told.get(a.run.id) == key:
            return
        self._told[a.run.id] = key
        if a.ranking is not None and best is not None:
            for line in summary_lines(a.run.name, a.ranking, a.rule.best_count):
                log.info("%s", line)
        if a.plan.held:
            log.warning("%s: %s", a.run.name, a.plan.held)

    def close(self) -> None:
        for scalars in self._scalars.values():
            scalars.close()


def _alarm_tag(alarm: Alarm) -> str:
    return f"Alarms/{alarm.symptom.kind}/{alarm.symptom.subject}"


def _whole_on_disk(c: Checkpoint) -> bool:
    try:
        found = sight_path(c.path, c.members).identity
    except OSError:
        return False
    judged = c.identity
    return c.state is CheckpointState.COMPLETE and (
        (found.inode, found.size, found.mtime_ns) == (judged.inode, judged.size, judged.mtime_ns))


def _contender(a: Assessment, evaluation: Evaluation) -> Contender | None:
    return next((c for c in a.contenders if c.checkpoint_id == evaluation.checkpoint_id
                 and c.variant == evaluation.variant and c.digest == evaluation.digest), None)


def _same(place: Place, contender: Contender) -> bool:
    return (place.contender.checkpoint_id, place.contender.variant) == (contender.checkpoint_id, contender.variant)
