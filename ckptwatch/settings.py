"""The configuration as plain values: what `config.py` makes of the YAML and everything else reads."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from ckptwatch.model import Recipe, RunRule
from ckptwatch.outline import Outline, default_state_dir

__all__ = ["NotifyRule", "Outline", "PublishRule", "RootRule", "Settings", "WorkerRule", "default_state_dir"]


@dataclass(frozen=True, kw_only=True)
class RootRule:
    """One directory to watch."""

    root: Path
    quiet: float = 30.0       # seconds without a change before a file counts as settled
    scan_every: float = 60.0  # seconds between full scans; the scan is the truth, events are hints
    trusted: bool = False     # may checkpoints below it be unpickled without restriction
    exclude: tuple[str, ...] = ()  # glob patterns on paths below the root
    names: tuple[re.Pattern[str], ...] = ()  # full matches on names, tried before ours: groups step, epoch, role, metrics


@dataclass(frozen=True, kw_only=True)
class WorkerRule:
    devices: tuple[str, ...] = ("auto",)  # one worker each; ("auto",): every CUDA device, else cpu; () evaluates nothing
    timeout: float = 7200.0               # seconds for one attempt at one evaluation
    attempts: int = 3
    retry_after: float = 30.0             # seconds before the second attempt; grows fourfold, up to an hour
    threads: int | None = None            # CPU threads of each worker; None leaves it to torch


@dataclass(frozen=True, kw_only=True)
class PublishRule:
    json: bool = True
    tensorboard: bool = True
    samples: bool = True


@dataclass(frozen=True, kw_only=True)
class NotifyRule:
    """Who is told of alarms."""

    to: tuple[str, ...] = ()   # Apprise URLs; they hold passwords: never shown whole, never logged
    every: float = 3600.0      # seconds between two messages about the same alarm
    at_most: int = 20          # messages in an hour; what is more goes together into one


@dataclass(frozen=True, kw_only=True)
class Settings:
    state_dir: Path
    roots: tuple[RootRule, ...]
    workers: WorkerRule = field(default_factory=WorkerRule)
    recipes: Mapping[str, Recipe] = field(default_factory=dict)
    runs: tuple[RunRule, ...] = ()
    publish: PublishRule = field(default_factory=PublishRule)
    notify: NotifyRule = field(default_factory=NotifyRule)
    directory: Path = field(default_factory=Path.cwd)  # relative paths in the configuration are relative to it
    observe_only: bool = False  # started on bare roots: nothing is written below them, nothing removed

    def rule_for(self, run_name: str) -> RunRule:
        """The first rule whose pattern matches; without one a run is watched and ranked, never pruned."""
        for rule in self.runs:
            if fnmatchcase(run_name, rule.match):
                return rule
        return RunRule()

    @property
    def outline(self) -> Outline:
        return Outline(state_dir=self.state_dir, roots=tuple(r.root for r in self.roots), recipes=frozenset(self.recipes),
                       expect=tuple((r.match, r.expect) for r in self.runs))

    def root_rule(self, root: Path) -> RootRule | None:
        return next((r for r in self.roots if r.root == root), None)
