"""Follows the logs of a training while it is held at each of its pauses, as the daemon does: by what they have grown."""

import json
from pathlib import Path
from typing import Any

from ckptwatch.core.series import LogRow
from ckptwatch.logs.base import HEAD, Dialect
from ckptwatch.logs.follower import Follower, Place
from ckptwatch.model import Logged
from tests.frameworks.dialogue import Dialogue, environment


class Followed:
    """One log; each look begins from what a daemon that was restarted would remember."""

    def __init__(self, path: Path, dialect: Dialect, logged: Logged) -> None:
        self.rows: list[LogRow] = []
        self.bad = 0
        self._path, self._dialect, self._logged = path, dialect, logged
        self._place: str | None = None

    def look(self) -> list[LogRow]:
        """The rows that are new."""
        before, more = len(self.rows), True
        while more:
            place = None if self._place is None else Place.from_plain(json.loads(self._place))
            follower = Follower(self._path, self._dialect, self._logged, place)
            polled = follower.poll()
            self._place = json.dumps(follower.place.to_plain())
            self.rows += polled.rows
            self.bad += polled.bad
            more = polled.more
        return self.rows[before:]


def follow(
    script: str, dialect: Dialect, base: Path, logged: Logged | None = None,
) -> tuple[dict[str, Followed], dict[str, list[list[LogRow]]], dict[str, Any]]:
    """Logs by path, what was new in each at each pause, and what the training says it logged."""
    out = base / "out"
    dialogue = Dialogue(script, [out], base, environment(base))
    found: dict[str, Followed] = {}
    news: dict[str, list[list[LogRow]]] = {}
    ended: dict[str, Any] = {}
    for document in dialogue.documents():
        if document["type"] in ("pause", "result"):
            for path in sorted(p for p in out.rglob("*") if p.is_file()):
                name = str(path.relative_to(out))
                with path.open("rb") as file:
                    head = file.read(HEAD)
                if dialect.claims(path.relative_to(out), head):
                    found.setdefault(name, Followed(path, dialect, logged or Logged()))
                    news.setdefault(name, []).append(found[name].look())
            ended = document.get("ended", ended)
        dialogue.answer()
    return found, news, ended
