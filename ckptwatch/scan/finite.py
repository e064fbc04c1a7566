"""Are the weights of a checkpoint finite? Every floating-point number is looked at, once, in a stream.

No torch, nothing of a file is run, memory does not grow with its size, and the page cache is given back. What a tensor of
nothing but 0 and −∞ holds is an attention mask, and finite. Sizes and places that a file claims are checked before they are
followed, so that a hostile one costs no more than its own bytes.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ckptwatch.formats.base import Claim, claim_at
from ckptwatch.formats.bulk import Advance, Bulk
from ckptwatch.formats.dcp_shards import is_shard
from ckptwatch.formats.integrity import files_of
from ckptwatch.formats.tensor_files import places_in, records_in
from ckptwatch.formats.tensor_places import Extent, NotReadError, Places, PlacesError
from ckptwatch.model import WeightScan
from ckptwatch.scan.bits import Looker, held

SHOWN = 20           # bad tensors that are named
LONGEST_SHOWN = 300  # characters of such a name
_NOT_READ = {"keras": "Keras files are not looked into", "orbax": "Orbax directories are not looked into",
             "network-pickle": "pickles of whole networks are not looked into"}


def scan_weights(claim: Claim, advance: Advance = lambda count: None) -> WeightScan:
    """Looks at all tensors of a checkpoint, those of an optimizer too. Never raises for what the files hold or lack.

    The state is "finite", "not_finite", "unreadable" (broken, vanished or changed meanwhile) or "unsupported" (no file of a
    kind that is looked into). `advance` is told of bytes that are done with.
    """
    if words := _NOT_READ.get(claim.format):
        return WeightScan(state="unsupported", words=words)
    found = _Found()
    try:
        files = files_of(claim)
        before = _stats(files)
        _scan_all(claim, files, found, advance)
        changed = _stats(files) != before
    except (OSError, PlacesError, ValueError) as error:
        return found.result("unreadable", _told(error))
    except NotReadError as error:
        return found.result("unsupported", str(error))
    if changed:
        return found.result("unreadable", "it changed while it was read")
    if not found.scanned:
        words = "; ".join(found.left[:3]) or "it holds no file of a kind that is looked into (torch.save, safetensors)"
        return found.result("unsupported", words)
    return found.result("not_finite" if found.bad_tensors else "finite",
                        f"not looked at: {'; '.join(found.left[:3])}" if found.left else "")


def scan_path(
    path: Path, members: Sequence[str] = (), format_name: str = "", advance: Advance = lambda count: None,
) -> WeightScan:
    """As `scan_weights`, of a checkpoint as it is recorded: its path, the names of its members, its format."""
    entries = tuple(path.with_name(name) for name in members) or (path,)
    try:
        claim = Claim(format=format_name, path=path, members=entries) if format_name else claim_at(path)
    except OSError as error:
        return WeightScan(state="unreadable", words=_told(error))
    if claim is None:
        claim = Claim(format="", path=path, members=entries)
    return scan_weights(claim, advance)


@dataclass(kw_only=True)
class _Found:
    scanned: int = 0  # files
    tensors: int = 0
    bytes: int = 0
    bad: dict[str, int] = field(default_factory=dict)
    bad_tensors: int = 0
    left: list[str] = field(default_factory=list)  # what was not looked at, and why

    def note(self, name: str, count: int) -> None:
        self.bad_tensors += 1
        if len(self.bad) < SHOWN:
            shown = name.encode(errors="backslashreplace").decode()
            self.bad["".join(c if c.isprintable() else "?" for c in shown[-LONGEST_SHOWN:])] = count

    def result(self, state: str, words: str) -> WeightScan:
        return WeightScan(state=state, tensors=self.tensors, bytes=self.bytes, bad=self.bad, bad_tensors=self.bad_tensors,
                          words=words[:1000])


def _scan_all(claim: Claim, files: list[Path], found: _Found, advance: Advance) -> None:
    top = claim.path if claim.path.is_dir() else claim.path.parent
    records = records_in(files)
    if missing := sorted(set(records) - set(files)):
        raise PlacesError(f".metadata refers to {missing[0].name}, which is missing")
    looker = Looker()
    for path in files:
        name = str(path.relative_to(top))
        try:
            places = places_in(path, records.get(path))
        except NotReadError as error:
            found.left.append(f"{name}: {error}")
            places = None
        except (PlacesError, ValueError) as error:
            raise PlacesError(f"{name}: {error}") from error
        with Bulk(path, advance) as bulk:
            if places is not None:
                found.scanned += 1
                found.left += [f"{name}: {places.left_out}"] if places.left_out else []
                _scan_file(bulk, places, looker, found, "" if len(files) == 1 or is_shard(name) else f"{name}: ")


def _scan_file(bulk: Bulk, places: Places, looker: Looker, found: _Found, prefix: str) -> None:
    found.tensors += places.tensors
    for extent in places.extents:
        for name, count in _bad_in(bulk, extent, looker).items():
            found.note(f"{prefix}{name}", count)
        found.bytes += extent.end - extent.begin


def _bad_in(bulk: Bulk, extent: Extent, looker: Looker) -> Counter[str]:
    """Tensor → how many of its numbers are NaN or infinite. Raises OSError, PlacesError."""
    bad: Counter[str] = Counter()
    mask_like, position = True, extent.begin
    for chunk in bulk.chunks(extent.begin, extent.end):
        if len(chunk) % extent.kind.size:
            break  # it was cut off this moment
        seen = looker.look(chunk, extent.kind, big_endian=extent.big_endian)
        mask_like = mask_like and seen.mask_like
        if seen.bad is not None:
            bad += _by_tensor(extent, seen.bad, (position - extent.begin) // extent.kind.size)
        position += len(chunk)
    if position < extent.end:
        raise PlacesError(f"{bulk.path.name} ends in the middle of tensor {extent.views[0].name}: it was cut off meanwhile")
    return Counter() if mask_like else bad


def _by_tensor(extent: Extent, bad: np.ndarray, before: int) -> Counter[str]:
    """Whose they are: where several tensors share a number, that of the smallest. What lies between tensors is nobody's."""
    if len(extent.views) == 1 and not extent.views[0].lattice:
        return Counter({extent.views[0].name: int(np.count_nonzero(bad))})
    counts: Counter[str] = Counter()
    positions = np.flatnonzero(bad) + before
    for view in sorted(extent.views, key=lambda v: v.end - v.begin):
        if not positions.size:
            break
        of_view = held(view, positions, extent.begin, extent.kind.size)
        if number := int(np.count_nonzero(of_view)):
            counts[view.name] += number
            positions = positions[~of_view]
    return counts


def _stats(files: list[Path]) -> list[tuple[int, int, int]]:
    return [(s.st_ino, s.st_size, s.st_mtime_ns) for s in (path.lstat() for path in files)]


def _told(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{Path(error.filename or '').name} vanished"
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
