"""The little of a configuration that `status` needs: where the state is, which roots, which recipes, what checkpoints
should have.

Read without validation, so that status answers although the configuration has a mistake, and answers quickly.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from ckptwatch.errors import ConfigError, UsageError

SEARCHED = ("ckptwatch.yaml", "~/.config/ckptwatch/config.yaml", "/etc/ckptwatch/config.yaml")
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, kw_only=True)
class Outline:
    state_dir: Path
    roots: tuple[Path, ...] = ()
    recipes: frozenset[str] = frozenset()  # names
    expect: tuple[tuple[str, tuple[str, ...]], ...] = ()  # of each rule for runs, in order: its pattern, and what it expects

    def expected_of(self, run_name: str) -> tuple[str, ...]:
        """The top-level entries that the first rule whose pattern matches expects of every checkpoint."""
        return next((keys for pattern, keys in self.expect if fnmatchcase(run_name, pattern)), ())


def find_config(given: Path | None) -> Path | None:
    """The configuration to use: `-c`, else $CKPTWATCH_CONFIG, else the first of SEARCHED that exists, else None."""
    if given is not None:
        return given
    if named := os.environ.get("CKPTWATCH_CONFIG"):
        return Path(named)
    return next((p for p in (Path(s).expanduser() for s in SEARCHED) if p.exists()), None)


def config_text(path: Path) -> str:
    """Raises UsageError if the file cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        cause = getattr(error, "strerror", None) or str(error)
        raise UsageError("read configuration", cause, path=path, hint="write one with config.example.yaml as a start") \
            from error


def read_outline(path: Path) -> Outline:
    """What can be understood of a configuration. Raises UsageError if it cannot be read, ConfigError if it is no YAML."""
    try:
        raw = yaml.load(config_text(path), Loader=_Loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(path, [f"not valid YAML: {error}"]) from error
    raw = raw if isinstance(raw, Mapping) else {}
    base = path.absolute().parent

    def absolute(value: Any) -> Path:
        return Path(os.path.normpath(base / Path(str(value)).expanduser()))

    watched = raw.get("watch") if isinstance(raw.get("watch"), list) else []
    rules = raw.get("runs") if isinstance(raw.get("runs"), list) else []
    recipes = raw.get("recipes") if isinstance(raw.get("recipes"), Mapping) else {}
    return Outline(
        state_dir=absolute(raw["state_dir"]) if raw.get("state_dir") else default_state_dir(),
        roots=tuple(absolute(w["root"]) for w in watched if isinstance(w, Mapping) and w.get("root")),
        recipes=frozenset(str(name) for name in recipes),
        expect=tuple(_expectation(rule) for rule in rules if isinstance(rule, Mapping)))


def _expectation(rule: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    expected = rule.get("expect")
    return str(rule.get("match", "*")), tuple(map(str, expected)) if isinstance(expected, list) else ()


def default_state_dir() -> Path:
    """systemd's STATE_DIRECTORY, else XDG_STATE_HOME/ckptwatch, else ~/.local/state/ckptwatch."""
    if given := os.environ.get("STATE_DIRECTORY"):
        return Path(given.split(":")[0])
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "ckptwatch"
