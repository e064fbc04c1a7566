"""`ckptwatch demo`: two real trainers and a real daemon, each a process of its own, shown live.

Nothing here reaches into the daemon: the show starts processes, reads their logs and asks for `status` like anybody else.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ckptwatch.demo.stage import NAN_AT, STEPS, Stage, prepare
from ckptwatch.errors import CkptwatchError

if TYPE_CHECKING:
    from rich.console import Console

KILL_AFTER = 3          # checkpoints, then one trainer is killed
PATIENCE = 900.0        # seconds until the demo gives up on this machine
LOG_LINES = 8
UNWANTED = ("PYTHONDONTWRITEBYTECODE", "CKPTWATCH_CONFIG")  # of the caller's environment


class Player:
    """A process of the show with its log."""

    def __init__(self, name: str, module: str, arguments: Sequence[object], log: Path, cwd: Path) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *map(str, arguments)], stdout=output, stderr=output, stdin=subprocess.DEVNULL,
                cwd=cwd, env={k: v for k, v in os.environ.items() if k not in UNWANTED})

    def last_line(self) -> str:
        lines = _lines(self.log)
        return lines[-1] if lines else "starting"

    def check(self) -> None:
        """Raises CkptwatchError if it ended badly."""
        if self.process.poll() not in (None, 0):
            raise CkptwatchError(f"go on: {self.name} ended with status {self.process.returncode};", "its last words:\n    "
                                 + "\n    ".join(_lines(self.log)[-6:]), hint=f"all of them are in {self.log}")

    def end(self, number: int = signal.SIGTERM, wait: float = 20.0) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)
            try:
                self.process.wait(wait)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def run_demo(directory: Path | None, *, pretrained: bool, ascii_only: bool) -> None:
    """Raises UsageError for a directory that holds something else, CkptwatchError if a part of the show fails."""
    from ckptwatch.cli.console import console

    screen = console(ascii_only=ascii_only)
    directory = Path(tempfile.mkdtemp(prefix="ckptwatch-demo-")) if directory is None else directory.absolute()
    begun = time.monotonic()
    stage = prepare(directory, pretrained=pretrained, screen=screen)
    players: list[Player] = []
    try:
        _play(stage, players, screen, begun)
        _tell(stage, screen, ascii_only)
    finally:
        for player in reversed(players):
            player.end()
    # The runs are over: one pass writes their results, as the daemon itself would after `ended_after`.
    with (stage.directory / "daemon.log").open("ab") as log:
        subprocess.run([sys.executable, "-m", "ckptwatch", "run", "-c", str(stage.config), "--once"], check=False,
                       stdout=subprocess.DEVNULL, stderr=log)
    screen.print(f"\ndone in {time.monotonic() - begun:.0f} s; everything is in {stage.directory}", soft_wrap=True)
    screen.print(f"try:  ckptwatch restore calm@STEP -c {stage.config}   (any step of the trash above)", soft_wrap=True)
    screen.print(f"      tensorboard --logdir {stage.runs / '.ckptwatch' / 'runs'}", soft_wrap=True)


def _play(stage: Stage, players: list[Player], screen: "Console", begun: float) -> None:
    daemon = Player("the daemon", "ckptwatch", ["run", "-c", stage.config], stage.directory / "daemon.log", stage.directory)
    players.append(daemon)
    trainers = {name: _trainer(stage, name, more) for name, more in (
        ("calm", ["--seed", 0]), ("stormy", ["--seed", 1, "--nan-at", NAN_AT]))}
    players.extend(trainers.values())
    screen.print("started the daemon and two trainers: `calm` will be killed and resumed, `stormy` diverges to NaN once",
                 soft_wrap=True)
    scene = _Scene(stage, daemon, trainers, screen, begun)
    killed = False
    with scene:
        while True:
            daemon.check()
            if not killed and len(stage.saved("calm")) >= KILL_AFTER:
                trainers["calm"].end(signal.SIGKILL)
                scene.say("demo: killed the trainer of `calm` (SIGKILL); it resumes from its newest checkpoint")
                trainers["calm"] = _trainer(stage, "calm", ["--seed", 0, "--resume"])
                players.append(trainers["calm"])
                killed = True
            for trainer in trainers.values():
                trainer.check()
            scene.update()
            if all(t.process.poll() == 0 for t in trainers.values()) and stage.settled():
                return
            if time.monotonic() - begun > PATIENCE:
                raise CkptwatchError("finish the demo", f"not done after {PATIENCE:.0f} s", path=stage.directory,
                                     hint=f"see {daemon.log}")
            time.sleep(0.25)


def _trainer(stage: Stage, name: str, more: Sequence[object]) -> Player:
    return Player(f"the trainer of {name}", "ckptwatch.demo.train",
                  ["--out", stage.runs / name, "--steps", STEPS, "--every", stage.every, "--threads", 1, *more],
                  stage.directory / f"{name}.log", stage.directory)


class _Scene:
    """On a terminal a live picture of everything; into a pipe the daemon's log as it grows."""

    def __init__(self, stage: Stage, daemon: Player, trainers: dict[str, Player], screen: "Console", begun: float) -> None:
        from rich.live import Live

        self._stage, self._daemon, self._trainers, self._begun = stage, daemon, trainers, begun
        self._screen = screen
        self._said: list[str] = []
        self._shown = 0
        self._next = 0.0
        self._live = Live(console=screen, auto_refresh=False, transient=True) if screen.is_terminal else None

    def __enter__(self) -> "_Scene":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def say(self, line: str) -> None:
        self._said.append(line)
        if not self._live:
            self._screen.print(line, soft_wrap=True)

    def update(self) -> None:
        if not self._live:
            lines = _lines(self._daemon.log)
            for line in lines[self._shown:]:
                self._screen.print(line, soft_wrap=True)
            self._shown = len(lines)
            return
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + 0.5
        self._live.update(self._picture(), refresh=True)

    def _picture(self) -> object:
        from rich.console import Group
        from rich.text import Text

        width = self._screen.width
        lines = [Text(f"ckptwatch demo · {time.monotonic() - self._begun:.0f} s", style="bold")]
        for name, trainer in self._trainers.items():
            lines.append(Text(f"  trainer {name:<7} {trainer.last_line()}"[:width], style="dim"))
        lines.append(Text(""))
        lines += [Text.from_ansi(line) for line in self._stage.status_lines(width)]
        lines.append(Text(""))
        lines += [Text(f"  {line}"[:width], style="dim") for line in
                  [*_news(self._daemon.log), *self._said[-1:]]]
        return Group(*lines[: self._screen.height - 1])


def _tell(stage: Stage, screen: "Console", ascii_only: bool) -> None:
    """What became of it, asked with the same commands a person would use."""
    flags = ["-c", str(stage.config), *(["--ascii"] if ascii_only else [])]
    for command in (["status"], ["rank", "calm"], ["rank", "stormy"], ["plan"], ["trash"]):
        screen.print()
        screen.print(f"$ ckptwatch {' '.join(command)}", style="bold")
        _sh([*command, *flags], screen)
    screen.print()
    for name in ("calm", "stormy"):
        link = stage.reports(name) / "best.pt"
        target = link.resolve().relative_to(stage.directory.resolve()) if link.is_symlink() else "nothing"
        screen.print(f"best.pt of {name:<7} → {target}", soft_wrap=True)
    for name in ("calm", "stormy"):
        sheet = stage.reports(name) / "evaluation_samples" / "overview.jpg"
        screen.print(f"samples over steps  {sheet}", soft_wrap=True)


def _sh(command: Sequence[str], screen: "Console") -> None:
    environment = {**os.environ, "COLUMNS": str(screen.width)}
    sys.stdout.flush()
    subprocess.run([sys.executable, "-m", "ckptwatch", *command], check=False, env=environment)


def _news(log: Path) -> list[str]:
    """The last lines of the daemon's log, without the summaries: the ranking stands above them already."""
    lines = [line for line in _lines(log) if " INFO   " not in line and "Best Checkpoint Summary" not in line]
    return lines[-LOG_LINES:]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


