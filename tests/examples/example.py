"""An example as a user has it: copied to a directory of its own, its scripts and ckptwatch run as processes of their own."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from ckptwatch.config import load_config
from ckptwatch.model import EvaluationState
from ckptwatch.status import as_json, gather
from ckptwatch.store import checkpoints, evaluations, runs
from ckptwatch.store.database import open_reading

EXAMPLES = Path(__file__).parents[2] / "examples"
MADE = ("runs", "state", "networks", "originals", "reference", "drawn", "stats.npz", "__pycache__")  # by running it
PATIENCE = 400.0  # seconds until something must have happened; never a measure of speed


class Example:
    """A copy of `examples/<name>` below `base`."""

    def __init__(self, name: str, base: Path) -> None:
        self.directory = base / name
        shutil.copytree(EXAMPLES / name, self.directory, ignore=shutil.ignore_patterns(*MADE))

    @property
    def checkpoints(self) -> Path:
        return self.directory / "runs"

    def reports(self, run: str) -> Path:
        return self.directory / "runs" / ".ckptwatch" / "runs" / run

    @property
    def log(self) -> str:
        return (self.directory / "daemon.log").read_text()

    def config(self, name: str, **changes: Any) -> str:
        """Write a variation of config.yaml under another name: dotted keys, numbers for list items. Returns the name."""
        content = yaml.safe_load((self.directory / "config.yaml").read_text())
        for key, value in changes.items():
            *parents, last = key.split("__")
            section = content
            for part in parents:
                section = section[int(part) if part.isdigit() else part]
            section[last] = value
        (self.directory / name).write_text(yaml.safe_dump(content))
        return name

    # ---- processes -------------------------------------------------------------------------------------------------

    def python(self, script: str, *arguments: object) -> str:
        """Run a script of the example to its end; returns what it printed."""
        return self._run([sys.executable, script, *map(str, arguments)], check=True).stdout

    def ckptwatch(self, *arguments: object, config: str = "config.yaml") -> subprocess.CompletedProcess[str]:
        return self._run(self._argv(*arguments, config=config))

    def json(self, *arguments: object, config: str = "config.yaml") -> dict[str, Any]:
        done = self.ckptwatch(*arguments, "--json", config=config)
        assert done.stdout, done.stderr
        return dict(json.loads(done.stdout))

    @contextmanager
    def daemon(self) -> Iterator[None]:
        """`ckptwatch run` beside whatever happens meanwhile; ended as systemd would end it."""
        with (self.directory / "daemon.log").open("ab") as log:
            process = subprocess.Popen(
                self._argv("run"), cwd=self.directory, env=self._environment(), stdout=log, stderr=log)
        try:
            yield
            assert process.poll() is None, self.log[-3000:]
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0, self.log[-3000:]
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()

    def wait(self, condition: Callable[[dict[str, Any]], Any], what: str) -> None:
        """Until the condition, asked with what `status --json` says, holds."""
        outline = load_config(self.directory / "config.yaml").outline
        deadline = time.monotonic() + PATIENCE
        while not condition(as_json(gather(outline, now=time.time()))):
            assert time.monotonic() < deadline, f"still not: {what}; the log ends:\n{self.log[-2000:]}"
            time.sleep(0.2)  # this asks often enough without taking time from the training beside it

    def evaluated(self) -> dict[str, set[tuple[int | None, str]]]:
        """File name → (epoch, variant) of what has been evaluated under it; variant "" of an epoch where nothing has."""
        found: dict[str, set[tuple[int | None, str]]] = {}
        db = open_reading(self.directory / "state")
        if db is None:
            return found
        try:
            with db.read() as conn:
                for run in runs.all_runs(conn):
                    done = {(e.checkpoint_id, e.variant) for e in evaluations.of_checkpoints_in(conn, run.id)
                            if e.state is EvaluationState.DONE}
                    for c in checkpoints.of_run(conn, run.id):
                        found.setdefault(c.path.name, set()).update(
                            {(c.epoch, variant) for i, variant in done if i == c.id} or {(c.epoch, "")})
        finally:
            db.close()
        return found

    def _argv(self, *arguments: object, config: str = "config.yaml") -> list[str]:
        return [sys.executable, "-m", "ckptwatch", *map(str, arguments), *(["-c", config] if config else [])]

    def _run(self, argv: list[str], *, check: bool = False) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(argv, cwd=self.directory, env=self._environment(), text=True, capture_output=True,
                              timeout=PATIENCE, check=False)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def _environment(self) -> dict[str, str]:
        unwanted = ("PYTHONDONTWRITEBYTECODE", "CKPTWATCH_CONFIG", "PYTHONPATH")
        kept = {k: v for k, v in os.environ.items() if k not in unwanted}
        # `python` of the configuration is that of the environment ckptwatch is installed in, as after activating it.
        return {**kept, "PATH": f"{Path(sys.executable).parent}:{kept['PATH']}", "OMP_NUM_THREADS": "1",
                "XDG_STATE_HOME": str(self.directory / "xdg"), "CUDA_VISIBLE_DEVICES": ""}


def idle(status: dict[str, Any]) -> bool:
    """Is nothing queued, running or about to be recorded?"""
    queue = status.get("queue", {})
    return bool(queue) and not queue["queued"] and not queue["running"] and not status["writing"]
