"""`checkpoint_metadata.json` as `ckptwatch eval` reads it: what it says of an evaluation, and whose it is."""

import json
import os
import shlex
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckptwatch.core.amounts import parse_duration
from ckptwatch.core.logged import direction
from ckptwatch.core.placeholders import EVALUATION, examine_pattern
from ckptwatch.core.precedence import Given, Source
from ckptwatch.errors import CkptwatchError
from ckptwatch.formats.reading import JSON_LIMIT, is_name, open_regular, whole_number
from ckptwatch.model import MetricSpec, Mode

SECTION = "evaluation"
# Where a value may stand besides the section, and under which names.
_ELSEWHERE = ("training_config", "dataset")
_NAMES: Mapping[str, tuple[str, ...]] = {
    "csv_input": ("csv_input", "val_csv", "csv_val"),
    "max_samples": ("max_samples", "max_eval_samples"),
    "batch_size": ("eval_batch_size", "batch_size"),
}
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, kw_only=True)
class Metadata:
    path: Path                # the file itself, links resolved
    content: Mapping[str, Any] = field(default_factory=dict)
    foreign: str = ""         # why a command in it is not simply run; "": it is the caller's own

    def given(self, name: str) -> Iterator[Given]:
        """What it says of a value: in `evaluation`, then in `training_config`, then in `dataset`.

        Raises CkptwatchError for a value in `evaluation` that cannot be one; elsewhere such is not meant for us.
        """
        for section in (SECTION, *_ELSEWHERE):
            part = self.content.get(section)
            if not isinstance(part, dict):
                continue
            for key in _NAMES.get(name, (name,) if section == SECTION else ()):
                if part.get(key) is None:
                    continue
                try:
                    value = _READERS[name](part[key], self.path.parent)
                except (ValueError, TypeError, RuntimeError) as error:
                    if section == SECTION:
                        raise self._problem(f"{section}.{key}", str(error)) from error
                    continue
                yield Given(source=Source.METADATA, origin=f"{self.path.name}, {section}.{key}", value=value)

    def text(self, name: str) -> str:
        """A text at the top of it, such as `experiment_name`; "" where there is none that can be shown."""
        value = self.content.get(name)
        return str(value) if is_name(value, 200) else ""

    def _problem(self, key: str, cause: str) -> CkptwatchError:
        return CkptwatchError("use metadata", f"{key}: {cause}", path=self.path, hint="mend it, or give the value otherwise")


def read_metadata(path: Path) -> Metadata:
    """Raises CkptwatchError where it is missing, unreadable, no JSON or no object."""
    def problem(cause: str, hint: str) -> CkptwatchError:
        return CkptwatchError("read metadata", cause, path=path, hint=hint)

    try:
        real = path.resolve(strict=True)
        with open_regular(real) as file:  # what is judged is what is read
            foreign = _foreign(real, os.fstat(file.fileno()), real.parent.stat())
            data = file.read(JSON_LIMIT + 1)
    except (OSError, RuntimeError) as error:
        cause = getattr(error, "strerror", None) or str(error)
        raise problem(cause, "let it be readable, or say by --command what to run") from error
    if len(data) > JSON_LIMIT:
        raise problem(f"larger than {JSON_LIMIT:,} bytes", "it should describe one experiment")
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise problem(f"no JSON: {str(error)[:200]}", "mend it: `python -m json.tool` shows the place; it may also be "
                      "half-written, then wait") from error
    if not isinstance(content, dict):
        raise problem(f"it holds a {type(content).__name__}, not an object",
                      'it should look like {"experiment_name": …, "evaluation": {"command": […]}}')
    section = content.get(SECTION)
    if section is not None and not isinstance(section, dict):
        raise problem(f"{SECTION} is a {type(section).__name__}, not an object",
                      'it should look like {"command": ["python", "eval.py", "--ckpt", "{checkpoint}"]}')
    return Metadata(path=real, content=content, foreign=foreign)


# ---- whose it is ----------------------------------------------------------------------------------------------------


def _foreign(path: Path, file: os.stat_result, directory: os.stat_result) -> str:
    """Why somebody else may have written the file; "" if only the caller can have."""
    for place, info in ((path, file), (path.parent, directory)):
        if info.st_uid != os.geteuid():
            return f"{place} belongs to {_user(info.st_uid)}, not to you"
        writers = stat.S_IMODE(info.st_mode) & _OTHERS_WRITE
        if writers & stat.S_IWOTH or (writers and not _alone_in_group(place, info)):
            return f"{place} can be written by others (mode {stat.S_IMODE(info.st_mode):04o})"
    return ""


def _alone_in_group(place: Path, info: os.stat_result) -> bool:
    """Where each user has a group of the same name and umask is 002, group-writable means nobody else; unless an access
    control list says more than the mode can."""
    import grp
    import pwd

    with suppress(OSError):
        os.getxattr(place, "system.posix_acl_access")
        return False
    try:
        user, group = pwd.getpwuid(info.st_uid), grp.getgrgid(info.st_gid)
    except KeyError:
        return False
    return group.gr_gid == user.pw_gid and group.gr_name == user.pw_name and not set(group.gr_mem) - {user.pw_name}


def _user(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


# ---- values ---------------------------------------------------------------------------------------------------------


def words_of(value: Any) -> tuple[str | tuple[str, ...], ...]:
    """argv of a text or of a list of words, of which some may be lists. Raises ValueError, in words."""
    if isinstance(value, str):
        value = shlex.split(value)
    if not (isinstance(value, list) and value and isinstance(value[0], str) and all(map(_is_word, value))):
        raise ValueError('should be a list of words such as ["python", "eval.py", "--ckpt", "{checkpoint}"]')
    argv = tuple(word if isinstance(word, str) else tuple(word) for word in value)
    for word in (w for part in argv for w in ((part,) if isinstance(part, str) else part)):
        if "\0" in word:
            raise ValueError("a word holds a NUL byte")
        if problem := examine_pattern(word, EVALUATION)[0]:
            raise ValueError(problem)
    return argv


def _is_word(word: Any) -> bool:
    return isinstance(word, str) or (isinstance(word, list) and word != [] and all(isinstance(w, str) for w in word))


def _metrics(value: Any, _: Path) -> tuple[MetricSpec, ...]:
    if isinstance(value, dict):
        value = [{"name": name, "mode": mode} for name, mode in value.items()]
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not value:
        raise ValueError('should be a list such as ["bleu", {"name": "loss", "mode": "min"}]')
    specs = tuple(_metric(item) for item in value)
    if len({spec.name for spec in specs}) < len(specs):
        raise ValueError("names a metric twice")
    return specs


def _metric(item: Any) -> MetricSpec:
    name, mode = (item.get("name"), item.get("mode")) if isinstance(item, dict) else (item, None)
    if not is_name(name):
        raise ValueError(f"{str(item)[:60]!r} is no metric: give a name, or {{name, mode}}")
    if mode not in (None, "min", "max"):
        raise ValueError(f"the mode of `{name}` should be min or max, found {mode!r}")
    return MetricSpec(name=name, mode=Mode(mode) if mode else direction(name))


def _file(value: Any, directory: Path) -> Path:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"should be the path of a file, found {value!r}")
    return Path(os.path.normpath(directory / Path(value).expanduser()))


def _count(value: Any, _: Path) -> int:
    number = whole_number(value)
    if number is None or number < 1:
        raise ValueError(f"should be a whole number from 1, found {value!r}")
    return number


def _switch(value: Any, _: Path) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"should be true or false, found {value!r}")
    return value


def _seconds(value: Any, _: Path) -> float:
    seconds = parse_duration(value) if isinstance(value, str) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < 2**31:
        raise ValueError(f"should be a duration such as 600 or 10m, found {value!r}")
    return float(seconds)


def _text(value: Any, _: Path) -> str:
    if not is_name(value, 200):
        raise ValueError(f"should be a file's name, found {value!r}")
    return str(value)


_READERS: Mapping[str, Any] = {
    "command": lambda value, _: words_of(value), "metrics": _metrics, "csv_input": _file, "max_samples": _count,
    "batch_size": _count, "log_samples": _switch, "log_interval": _count, "log_max_samples": _count, "timeout": _seconds,
    "result": _text,
}
