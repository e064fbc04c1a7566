"""Network snapshots of StyleGAN2, StyleGAN3, EDM and EDM2: pickles of whole networks.

EDM2 writes several per step, one for each length of its moving average; they are variants of one checkpoint.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from ckptwatch.formats.base import About, Claim, Family, Folder, list_folder
from ckptwatch.formats.neighbours import lacking
from ckptwatch.formats.parts import fingerprint_of, look
from ckptwatch.formats.reading import read_json
from ckptwatch.model import Facts

_SNAPSHOT = re.compile(r"network-snapshot-(?P<kimg>\d{1,12}+)(?:-(?P<ema>\d\.\d{1,6}))?\.pkl")
_ROLLING = frozenset({"network-snapshot.pkl", "network-snapshot-latest.pkl"})
_STATE = re.compile(r"training-state-(?P<kimg>\d{1,12}+)\.pt")
OPTIONS = "training_options.json"
DEFAULT_EMAS = (0.05, 0.1)  # of EDM2's PowerFunctionEMA, where the options name none


class NetworkPickle(Family):
    name = "network-pickle"
    precedence = 60
    about = About(
        title="StyleGAN, EDM",
        recognised="`network-snapshot-002048.pkl`, `network-snapshot-0002048-0.100.pkl`; several of one step are one "
                   "checkpoint, together with the `training-state-0002048.pt` of that step. A training state alone is none",
        complete="the opcode that ends a pickle is the last byte of each file, and no average is missing that the two steps "
                 "before have or that `training_options.json` asks for",
        protected="the newest `training-state-*.pt`: training resumes from it",
        facts="the step, in thousands of images, from the name; variants are the lengths of the moving average",
    )

    def claims(self, folder: Folder) -> Iterable[Claim]:
        snapshots = _snapshots(folder.files)
        states = {kimg: name for name, kimg in _states(folder.files).items()} if snapshots else {}
        for kimg, names in sorted(snapshots.items()):
            beside = [states[kimg]] if kimg in states else []
            yield self.claim_files(folder, min(names.values()), *names.values(), *beside)
        for name in sorted(_ROLLING & folder.files):
            yield self.claim_files(folder, name)

    def examine(self, claim: Claim) -> Facts:
        names = frozenset(m.name for m in claim.members)
        snapshots = _snapshots(names)
        for member in claim.members:
            part = look(member)
            if not part.whole:
                return self.incomplete(f"{member.name}: {part.evidence}")
        kimg, emas = next(iter(snapshots.items()), (None, {"": claim.path.name}))
        if kimg is not None:
            if asked := _asked_for(claim.path.parent, emas) - emas.keys():
                return self.incomplete(f"{OPTIONS} asks for {', '.join(sorted(asked)[:5])}, missing here")
            around = _averages_in(claim.path.parent, claim.path.parent.stat().st_mtime_ns)
            if evidence := lacking(around, kimg, frozenset(emas)):
                return self.incomplete(evidence)
        weights = [claim.path.with_name(n) for n in emas.values()]
        return Facts(
            format=self.name, complete=True, step=kimg, variants=tuple(sorted(filter(None, emas))), content_digest=True,
            evidence=f"the pickle of {'each of ' if len(weights) > 1 else ''}{len(weights)} network"
                     f"{'s' if len(weights) > 1 else ''} ends exactly at the end of its file",
            fingerprint=fingerprint_of(weights, claim.path.parent),
        )

    def variant_path(self, path: Path, members: Sequence[str], variant: str) -> Path:
        """Each average is a file of its own."""
        for emas in _snapshots(members).values():
            if variant in emas:
                return path.with_name(emas[variant])
        return path

    def needed(self, folder: Folder) -> Iterable[tuple[Path, str]]:
        states = _states(folder.files)
        if states:
            newest = max(states, key=lambda n: (states[n], n))
            yield folder.path / newest, "the newest training state: training resumes from it"


@lru_cache(maxsize=4)  # all snapshots of a run ask one after the other
def _averages_in(directory: Path, mtime_ns: int) -> Mapping[int, frozenset[str]]:
    """kimg → averages, in a directory as it is since `mtime_ns`. Raises OSError."""
    return {kimg: frozenset(emas) for kimg, emas in _snapshots(list_folder(directory).files).items()}


def _snapshots(files: Iterable[str]) -> dict[int, dict[str, str]]:
    """kimg → length of the average, "" if the name has none → name."""
    found: dict[int, dict[str, str]] = {}
    for name in sorted(n for n in files if n.startswith("network-snapshot-")):
        if match := _SNAPSHOT.fullmatch(name):
            found.setdefault(int(match["kimg"]), {})[match["ema"] or ""] = name
    return found


def _states(files: Iterable[str]) -> Mapping[str, int]:
    return {n: int(m["kimg"]) for n in files if n.startswith("training-state-") and (m := _STATE.fullmatch(n))}


def _asked_for(folder: Path, emas: Iterable[str]) -> set[str]:
    """The averages that EDM2's own record of its options asks for, as they are written in names."""
    if "" in emas:
        return set()
    try:
        options = read_json(folder / OPTIONS)
    except (OSError, ValueError):
        return set()
    average = options.get("ema_kwargs") if isinstance(options, dict) else None
    if not isinstance(average, dict) or not str(average.get("class_name")).endswith("PowerFunctionEMA"):
        return set()
    lengths = average.get("stds", DEFAULT_EMAS)
    return {f"{n:.3f}" for n in lengths if isinstance(n, float)} if isinstance(lengths, list | tuple) else set()
