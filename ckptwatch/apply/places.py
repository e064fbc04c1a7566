"""Where ckptwatch keeps things below a root, and the marker that tells this root from another."""

import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path

from ckptwatch.errors import RootError
from ckptwatch.publish.atomic import write_atomic
from ckptwatch.watch.scanner import OURS

MARKER = "root.json"


@dataclass(frozen=True, kw_only=True)
class Marker:
    uuid: str
    device: int  # of the root now


def home(root: Path) -> Path:
    """`<root>/.ckptwatch`."""
    return root / OURS


def trash_dir(root: Path) -> Path:
    return home(root) / "trash"


def run_dir(root: Path, run: str) -> Path:
    """Where a run's aliases and reports go: `<root>/.ckptwatch/runs/<run>`."""
    return home(root) / "runs" / run if run != "." else home(root) / "runs"


def read_marker(root: Path) -> Marker | None:
    """The marker of a root, None if it has none. Raises RootError if the root is missing or cannot be read."""
    try:
        device = root.stat().st_dev
        if not root.is_dir():
            raise RootError("watch", "not a directory", path=root)
        os.scandir(root).close()
        raw = (home(root) / MARKER).read_bytes()
    except FileNotFoundError:
        if not root.exists():
            raise RootError("watch", "the directory is missing", path=root,
                            hint="mount it, or create it; nothing is removed or forgotten meanwhile") from None
        return None
    except OSError as error:
        raise RootError("watch", error.strerror or str(error), path=root) from error
    try:
        return Marker(uuid=str(uuid.UUID(json.loads(raw)["uuid"])), device=device)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RootError("watch", f"its marker {home(root) / MARKER} is damaged", path=root,
                        hint="if this is the right directory, remove that file and start again") from error


def place_marker(root: Path) -> Marker:
    """Give a root its marker. Raises RootError where it cannot be written."""
    marker = Marker(uuid=str(uuid.uuid4()), device=root.stat().st_dev)
    try:
        home(root).mkdir(exist_ok=True)
        write_atomic(home(root) / MARKER, (json.dumps({"uuid": marker.uuid}) + "\n").encode())
    except OSError as error:
        raise RootError("mark", error.strerror or str(error), path=root,
                        hint="ckptwatch writes only below .ckptwatch there; give its user that permission") from error
    return marker
