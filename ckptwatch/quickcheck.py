"""The quick check of a checkpoint: is it whole, does it load, is it finite, is everything there, does its evaluation run?

For the beginning of a training, when a mistake costs minutes instead of days. Reads only; what is evaluated is recorded
nowhere.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptwatch.core.expectation import lacking
from ckptwatch.core.metrics import METRICS
from ckptwatch.core.naming import CONVENTIONAL, run_directory
from ckptwatch.formats.base import Claim, Format, NamePatterns, claims_in, examine, format_named, list_folder
from ckptwatch.formats.bulk import Advance
from ckptwatch.formats.words import counted
from ckptwatch.logged_now import Series, logged_in
from ckptwatch.model import Facts, Recipe, RunRule, evolve

if TYPE_CHECKING:
    from ckptwatch.settings import Settings
    from ckptwatch.workers.wire import Result

SAMPLES = 2          # images of the one pass, unless its metrics need more
COMMAND_SAMPLES = 4  # of an evaluation command
SHOWN = 8            # names in a sentence
WORST = 4            # tensors in one
LEVELS = 5           # directories below a run's, and how many of them, in which its checkpoints are looked for
MOST_DIRECTORIES = 1000
LOAD_LIMIT = 3600.0  # seconds
LOADER = (sys.executable, "-m", "ckptwatch.evaluate.loads")


class State(StrEnum):
    OK = "ok"
    FAILED = "failed"
    SKIPPED = "skipped"  # not asked for, or not possible; the words say how to ask


@dataclass(frozen=True, kw_only=True)
class Check:
    name: str
    state: State
    words: str


def _ok(name: str, words: str) -> Check:
    return Check(name=name, state=State.OK, words=words)


def _failed(name: str, words: str) -> Check:
    return Check(name=name, state=State.FAILED, words=words)


def _skipped(name: str, words: str) -> Check:
    return Check(name=name, state=State.SKIPPED, words=words)


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A checkpoint and what its format says of it."""

    claim: Claim
    format: Format
    facts: Facts


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is checked: a run, and a checkpoint of it unless there is none yet."""

    saved: Saved | None
    run_directory: Path
    others: tuple[Path, ...] = ()  # directories of other runs below that of this one


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What is expected and asked for. Without a configuration: `settings` is None, `rule` empty."""

    settings: "Settings | None" = None
    rule: RunRule = field(default_factory=RunRule)
    recipe: Recipe | None = None
    no_recipe: str = ""                    # why there is none, and how to ask
    expect: tuple[str, ...] = ()           # keys
    expect_losses: tuple[str, ...] = ()
    trusted: bool = False
    with_pass: bool = True


Evaluate = Callable[[Recipe, str], "Result"]  # recipe and variant; raises CkptwatchError
Progress = Callable[[int], AbstractContextManager[Advance]]  # of so many bytes


def checks(
    subject: Subject, wishes: Wishes, evaluate: Evaluate, progress: Progress = lambda total: nullcontext(lambda count: None),
) -> Iterator[Check]:
    """Each as soon as it is done, the quick ones first; never raises for what the checkpoint is like."""
    saved = subject.saved
    why = "no checkpoint yet" if saved is None else "not while it is incomplete"
    yield _skipped("complete", f"{why} in {subject.run_directory}") if saved is None else check_complete(saved.facts)
    if saved is None or not saved.facts.complete:
        yield from (_skipped(name, why) for name in ("loads", "weights", "keys"))
    else:
        yield check_loads(saved, wishes)
        yield check_weights(saved.claim, progress)
        yield check_keys(saved.facts, wishes.expect)
    yield check_losses(subject, wishes)
    if saved is None or not saved.facts.complete:
        yield _skipped("pass", why)
    else:
        yield check_pass(saved.facts, wishes, evaluate)


def check_complete(facts: Facts) -> Check:
    counts = (("step", facts.step), ("epoch", facts.epoch))
    place = "".join(f", {unit} {count:,}" for unit, count in counts if count is not None)
    words = f"{facts.format}{place}: {facts.evidence}"
    return _ok("complete", words) if facts.complete else _failed("complete", words)


# ---- which checkpoint -----------------------------------------------------------------------------------------------


def saved_of(claim: Claim, names: NamePatterns | None) -> Saved:
    """Raises OSError where the checkpoint cannot be read."""
    format_ = format_named(claim.format)
    assert format_ is not None
    return Saved(claim=claim, format=format_, facts=examine(claim, format_, names))


def run_of(claim: Claim) -> Path:
    """The directory of a checkpoint's run, without those by which trainers group checkpoints."""
    directory = run_directory(claim.path, whole=claim.whole)
    while directory.name.lower() in CONVENTIONAL:
        directory = directory.parent
    return directory


def newest_in(run: Path, names: NamePatterns | None) -> Subject:
    """The newest complete checkpoint of a run, by step and epoch; where none is complete, the newest. Raises OSError."""
    own = [saved_of(claim, names) for claim in _claims_near(run) if run_of(claim) == run]
    newest = max(own, default=None, key=lambda s: (
        s.facts.complete, -1 if s.facts.step is None else s.facts.step, -1 if s.facts.epoch is None else s.facts.epoch,
        s.claim.path.lstat().st_mtime_ns))
    return Subject(saved=newest, run_directory=run, others=others_in(run))


def others_in(run: Path) -> tuple[Path, ...]:
    """Directories of other runs below that of a run: their logs are not its own."""
    return tuple(sorted({d for d in map(run_of, _claims_near(run)) if d != run and d.is_relative_to(run)}))


def _claims_near(top: Path) -> Iterator[Claim]:
    """Checkpoints in a directory and not far below it: nobody asked for a walk through a whole disk."""
    level, looked = [top], 0
    for _ in range(LEVELS):
        below: list[Path] = []
        for directory in level[: MOST_DIRECTORIES - looked]:
            looked += 1
            try:
                folder = list_folder(directory, is_root=directory == top)
            except OSError:
                continue
            claims = claims_in(folder)
            yield from (claim for claim in claims if not claim.aside)
            taken = {member.name for claim in claims for member in claim.members}
            if not any(claim.whole for claim in claims):
                below += [directory / name for name in sorted(folder.folders - taken)]
        level = below


# ---- weights --------------------------------------------------------------------------------------------------------


def check_loads(saved: Saved, wishes: Wishes) -> Check:
    """By a process of its own that reads the weights as an evaluation would, of each variant that is evaluated."""
    claim = saved.claim
    members = tuple(m.name for m in claim.members) if len(claim.members) > 1 else ()
    by_path: dict[Path, list[str]] = {}
    for variant in variants_of(wishes.rule, saved.facts) or ("",):
        by_path.setdefault(saved.format.variant_path(claim.path, members, variant), []).append(variant)
    answers = [_loaded(path, variants, wishes.trusted) for path, variants in by_path.items()]
    if failed := next((a for a in answers if "error" in a), None):
        hint = f" → {failed['hint']}" if failed.get("hint") else ""
        return _failed("loads", f"{failed['error']}{hint}")
    if any("unknown" in a for a in answers):
        return _skipped("loads", f"only a sampler of its own can load this: {saved.format.about.title}")
    how = "unpickled without restriction, as its root is trusted" if wishes.trusted else "nothing in it was run"
    sizes = [f"{counted(one['tensors'], 'tensor')}, {counted(one['numbers'], 'number')}"
             + (f" in {one['variant']}" if one["variant"] else "") for answer in answers for one in answer["loaded"]]
    return _ok("loads", f"{'; '.join(sizes)}; {how}")


def variants_of(rule: RunRule, facts: Facts) -> tuple[str, ...]:
    """Those that the run's rule evaluates; () for the checkpoint as a whole."""
    wanted = rule.evaluate.variants if rule.evaluate is not None else ()
    return facts.variants if wanted == ("all",) else wanted


def _loaded(path: Path, variants: Sequence[str], trusted: bool) -> dict[str, Any]:
    """The answer of ckptwatch.evaluate.loads."""
    argv = [*LOADER, *(["--trusted"] if trusted else []), *(f"--variant={v}" for v in variants if v), "--", str(path)]
    try:
        done = subprocess.run(argv, capture_output=True, stdin=subprocess.DEVNULL, timeout=LOAD_LIMIT, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"not loaded after {LOAD_LIMIT:.0f} s"}
    except OSError as error:
        return {"error": f"the process that loads it could not be started: {error}"}
    try:
        return dict(json.loads(done.stdout))
    except (ValueError, TypeError):
        from ckptwatch.workers.supervisor import describe_death

        said = done.stderr.decode(errors="replace").strip().splitlines()
        last = f": {said[-1][:300]}" if said else ""
        return {"error": f"the process that loads it {describe_death(done.returncode)}{last}"}


def check_weights(claim: Claim, progress: Progress) -> Check:
    from ckptwatch.formats.integrity import size_of
    from ckptwatch.scan.finite import scan_weights

    try:
        total = size_of(claim)
    except (OSError, ValueError) as error:
        return _failed("weights", f"cannot be read: {error}")
    with progress(total) as advance:
        scan = scan_weights(claim, advance)
    if scan.state == "finite" and not scan.tensors:
        return _skipped("weights", "no tensors of numbers were found in it")
    if scan.state == "finite":
        rest = f"; {scan.words}" if scan.words else ""
        return _ok("weights", f"all finite: {counted(scan.tensors, 'tensor')}, {scan.bytes:,} bytes{rest}")
    if scan.state == "not_finite":
        shown = ", ".join(f"{name} ({count:,})" for name, count in list(scan.bad.items())[:WORST])
        more = f" and {scan.bad_tensors - WORST:,} more" if scan.bad_tensors > WORST else ""
        return _failed("weights", f"NaN or Inf in {scan.bad_tensors:,} of {counted(scan.tensors, 'tensor')}: {shown}{more}")
    return _skipped("weights", scan.words) if scan.state == "unsupported" else _failed("weights", scan.words)


# ---- what should be there -------------------------------------------------------------------------------------------


def check_keys(facts: Facts, expected: Sequence[str]) -> Check:
    there = _listed(facts.keys) if facts.keys else ""
    if not expected:
        ask = "expect some with --expect KEY, or `expect` of the run in the configuration"
        return _skipped("keys", f"it has {there}; {ask}" if there else ask)
    if not facts.keys:
        return _skipped("keys", f"its format, {facts.format}, does not tell its entries")
    if missing := lacking(expected, facts.keys):
        return _failed("keys", f"it lacks {_nearest(missing, facts.keys)}; it has {there}")
    return _ok("keys", _listed(tuple(dict.fromkeys(expected))))


def check_losses(subject: Subject, wishes: Wishes) -> Check:
    """Are the expected names in the run's logs, and is everything finite that looks like a loss?"""
    found = logged_in(subject.run_directory, subject.others, wishes.rule.logged)
    names = {name: series for name, series in found.series.items()
             if "loss" in name.lower() or name in wishes.expect_losses}
    if missing := [name for name in dict.fromkeys(wishes.expect_losses) if name not in found.series]:
        if not found.logs:
            return _failed("losses", f"no log in {subject.run_directory}, so none of {', '.join(missing)}; `logged.files` "
                                     "of the run names logs that are not found by themselves")
        return _failed("losses", f"not logged: {_nearest(missing, found.series)}; "
                                 f"{counted(len(found.series), 'name')} in {_listed(found.logs)}")
    if bad := [f"{name} ({_not_finite(series)})" for name, series in names.items() if series.not_finite]:
        return _failed("losses", f"NaN or Inf was logged: {_listed(bad)}")
    ask = "expect some with --expect-loss NAME, or `expect_logged` of the run in the configuration"
    if not names:
        return _skipped("losses", f"{f'no loss in {_listed(found.logs)}' if found.logs else 'no log found'}; {ask}")
    last = f"{_listed([f'{name} {series.last:.4g}' for name, series in names.items()])}, all finite"
    if not wishes.expect_losses:
        return _skipped("losses", f"{last}; {ask}")
    return _ok("losses", f"{last}, in {_listed(found.logs)}")


def _not_finite(series: Series) -> str:
    where = f"first at {series.first_bad}" if series.first_bad else "somewhere"
    return f"{series.not_finite:,} of {series.count:,} values, {where}"


def _nearest(missing: Sequence[str], there: Any) -> str:
    """The missing names, each with the one that was perhaps meant."""
    told = []
    for name in missing:
        near = get_close_matches(name, list(there)[:2000], n=1)
        told.append(f"{name} (did you mean {near[0]}?)" if near else name)
    return ", ".join(told)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


# ---- one pass -------------------------------------------------------------------------------------------------------


def check_pass(facts: Facts, wishes: Wishes, evaluate: Evaluate) -> Check:
    from ckptwatch.errors import CkptwatchError

    if not wishes.with_pass:
        return _skipped("pass", "left out, as asked")
    if wishes.recipe is None:
        return _skipped("pass", wishes.no_recipe)
    recipe = shortened(wishes.recipe)
    if recipe is None:
        return _skipped("pass", f"recipe {wishes.recipe.name} only reads what training logs")
    variant = next(iter(variants_of(wishes.rule, facts)), "")
    try:
        result = evaluate(recipe, variant)
    except CkptwatchError as error:
        return _failed("pass", f"{error.cause}{f' → {error.hint}' if error.hint else ''}")
    scores = ", ".join(f"{s.metric} {s.value:.4g}" for s in list(result.scores)[:SHOWN])
    of = counted(recipe.samples, "sample") if recipe.kind == "images" else "its command"
    which = f" [{variant}]" if variant else ""
    return _ok("pass", f"recipe {recipe.name}{which}, {of}, {result.seconds:.1f} s: {scores}; so few say nothing of quality")


def shortened(recipe: Recipe) -> Recipe | None:
    """The recipe with as few samples as it can be run with; None where nothing is run for it."""
    if recipe.kind == "logged":
        return None
    if recipe.command is not None:
        samples = min(COMMAND_SAMPLES, recipe.command.max_samples or COMMAND_SAMPLES)
        return evolve(recipe, command=evolve(recipe.command, max_samples=samples, log_samples=False))
    known = [METRICS[m.name] for m in recipe.metrics if m.name in METRICS and not m.function]
    samples = min(recipe.samples, max([SAMPLES, *(info.minimum_samples for info in known)]))
    return evolve(recipe, samples=samples, batch_size=min(samples, recipe.batch_size), keep_samples=0, workers=1)
