"""Names that end in a counter: where a file stands among all of them, before all of them are there."""

import re
from collections.abc import Collection
from pathlib import Path

_COUNTED = re.compile(r"(.*?)([0-9]+)", re.ASCII | re.DOTALL)


def counted(name: str) -> tuple[str, str] | None:
    """Prefix and digits of a file name's stem: ("img_", "0007") of img_0007.png; None where it does not end in digits."""
    match = _COUNTED.fullmatch(name.rpartition(".")[0] or name)
    return (match[1], match[2]) if match else None


class Numbering:
    """The files of a directory, as long as all are named by one prefix and a counter.

    The place of img_7.png is certain once the counter is known to begin at 0 (or another of `firsts`), whatever else comes.
    Any other name, or a number twice, makes every place uncertain until the last file is there.
    """

    def __init__(self, firsts: Collection[int]) -> None:
        self._firsts = firsts
        self._forget()

    def update(self, names: Collection[str]) -> None:
        """`names` are those of all the files there are now."""
        if not self._names.issubset(names):
            self._forget()  # some went away: temporary ones, or renamed
        for name in names:
            if name not in self._names:
                self._add(name)
        self._names = set(names)

    @property
    def first(self) -> int | None:
        """The number at which the counter begins; None while that is uncertain."""
        return self._lowest if self._plain and self._lowest in self._firsts else None

    def name(self, number: int) -> str | None:
        return self._by_number.get(number)

    def _forget(self) -> None:
        self._names: set[str] = set()
        self._by_number: dict[int, str] = {}
        self._lowest: int | None = None
        self._prefix: str | None = None
        self._plain = True

    def _add(self, name: str) -> None:
        place = counted(name)
        number = int(place[1]) if place else None
        if place is None or number is None or self._prefix not in (None, place[0]) or number in self._by_number:
            self._plain = False
            return
        self._prefix = place[0]
        self._by_number[number] = name
        self._lowest = number if self._lowest is None else min(self._lowest, number)


class Stems:
    """The names that a single worker's command would have given: a command that counts from 0 in every range writes img_0
    for the first sample of each, and that must not be taken for the original `img_0`."""

    def __init__(self, start: int, first: str) -> None:
        """`first` is the name of the range's first file, `start` the index of its sample."""
        place = counted(first)
        self._shift = start
        # A number that is the sample's index counts the whole. So a range that begins at sample 1, as only batches of one
        # image make it, has its own counter only where that begins at 0: img_1 there is img_1 of the whole.
        self._prefix = place[0] if place and int(place[1]) in {0, 1} - {start} else None

    def __call__(self, path: Path) -> str:
        place = counted(path.name)
        if not self._shift or place is None or place[0] != self._prefix:
            return path.stem
        prefix, digits = place
        return f"{prefix}{int(digits) + self._shift:0{len(digits)}d}"
