"""For authors of plugins: conformance suites. Subclass one in your tests, and pytest runs it on your implementation."""

import random
import shutil
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptwatch.formats.base import Claim, Format, claim_at, claims_below, formats
from ckptwatch.model import Facts

if TYPE_CHECKING:
    from ckptwatch.testing_samplers import SamplerConformance

__all__ = ["FormatConformance", "SamplerConformance", "damaged"]


def __getattr__(name: str) -> Any:
    if name != "SamplerConformance":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ckptwatch.testing_samplers import SamplerConformance  # needs torch, which authors of formats may not have

    return SamplerConformance

_TEXTS = (".json", ".txt", ".yaml")  # without the last line break they say the same


class FormatConformance:
    """What every format owes. Name your subclass Test… and give it `make_format`, `write`, for several files also `order`.

        class TestMyFormat(FormatConformance):
            def make_format(self): return MyFormat()
            def write(self, directory): ...; return directory / "0001.mine"
    """

    cuts = 40          # lengths at which each file of the writing sequence is cut off
    mutations = 200    # damaged copies tried

    def make_format(self) -> Format:
        raise NotImplementedError

    def write(self, directory: Path) -> Path:
        """Write one small complete checkpoint below the directory with the format's usual writer, and the files beside it
        that prove it; return the path it is called by."""
        raise NotImplementedError

    def order(self, directory: Path, path: Path) -> Sequence[str]:
        """All files below the directory in the order in which the writer writes them, relative to it."""
        return [str(p.relative_to(directory)) for p in sorted(directory.rglob("*")) if p.is_file()]

    # ---- tools -----------------------------------------------------------------------------------------------------

    def among(self) -> list[Format]:
        """Yours, and then all installed ones: what yours leaves alone must not be taken for another's complete one."""
        mine = self.make_format()
        return [f for f in formats() if f.name != mine.name and f.precedence < mine.precedence] + [mine] + [
            f for f in formats() if f.name != mine.name and f.precedence >= mine.precedence]

    def facts_below(self, directory: Path) -> dict[Path, Facts]:
        """Everything that is claimed below a directory, examined, and held against what holds whatever the bytes are."""
        by_name = {f.name: f for f in self.among()}
        found = {}
        for claim in claims_below(directory, self.among()):
            facts = by_name[claim.format].examine(claim)
            _hold(facts)
            assert claim.path not in found, f"{claim.path} is claimed twice"
            found[claim.path] = facts
        return found

    def claim(self, path: Path) -> Claim:
        claim = claim_at(path, self.among())
        assert claim is not None, f"nothing claims {path.name}"
        return claim

    # ---- the promises ----------------------------------------------------------------------------------------------

    def test_it_is_a_format_with_a_name_and_a_description(self) -> None:
        format_ = self.make_format()
        assert isinstance(format_, Format)
        assert format_.name == format_.name.strip().lower() != ""
        assert format_.about.title and format_.about.recognised and format_.about.complete

    def test_it_leaves_everything_else_alone(self, tmp_path: Path) -> None:
        for name in ("notes.txt", "events.out.tfevents.1.host", "config.yaml", "image.png", "train.log", "latest"):
            (tmp_path / name).write_bytes(b"")
        assert list(claims_below(tmp_path, [self.make_format()])) == []

    def test_the_whole_is_one_complete_checkpoint(self, tmp_path: Path) -> None:
        path = self.write(tmp_path)
        before = _contents(tmp_path)
        found = self.facts_below(tmp_path)
        assert list(found) == [path], f"claimed: {[str(p.relative_to(tmp_path)) for p in found]}"
        assert found[path].complete, found[path].evidence
        assert found[path].format == self.make_format().name, f"{path.name} is taken for {found[path].format}"
        assert found[path].fingerprint
        assert self.claim(path).path == path
        assert _contents(tmp_path) == before, "examining changed the files"

    def test_every_proper_prefix_of_writing_is_incomplete_with_evidence(self, tmp_path: Path) -> None:
        (tmp_path / "whole").mkdir()
        path = self.write(tmp_path / "whole")
        order = list(self.order(tmp_path / "whole", path))
        assert sorted(order) == sorted(str(p.relative_to(tmp_path / "whole")) for p in (tmp_path / "whole").rglob("*")
                                       if p.is_file()), "order() does not name all files"
        growing = tmp_path / "growing"
        for name in order:
            data = (tmp_path / "whole" / name).read_bytes()
            target = growing / name
            target.parent.mkdir(parents=True, exist_ok=True)
            for length in _lengths(len(data.rstrip() if name.endswith(_TEXTS) else data), self.cuts):
                target.write_bytes(data[:length])
                for claimed, facts in self.facts_below(growing).items():
                    assert not facts.complete, (
                        f"with {length} of {len(data)} bytes of {name}, {claimed.name} passes for a whole {facts.format}: "
                        f"{facts.evidence}")
            target.write_bytes(data)
        assert any(f.complete for f in self.facts_below(growing).values())

    def test_a_copy_has_the_same_facts_wherever_it_lies(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        path = self.write(tmp_path / "a")
        shutil.copytree(tmp_path / "a", tmp_path / "b" / "deep", symlinks=True)
        there = tmp_path / "b" / "deep" / path.relative_to(tmp_path / "a")
        assert self.facts_below(tmp_path / "b" / "deep")[there] == self.facts_below(tmp_path / "a")[path]

    def test_garbage_in_place_of_any_file_never_raises(self, tmp_path: Path) -> None:
        chance = random.Random(0)
        path = self.write(tmp_path)
        for name in self.order(tmp_path, path):
            whole = (tmp_path / name).read_bytes()
            for garbage in (b"", b"\0", b"\0" * 4096, b"\xff" * 100, b"PK\x03\x04", b"PK\x05\x06" + b"\0" * 18, b"{}",
                            b"[]", b"null", b"\x80\x02}.", b"\x89HDF\r\n\x1a\n", chance.randbytes(1000)):
                (tmp_path / name).write_bytes(garbage)
                self.facts_below(tmp_path)
            (tmp_path / name).write_bytes(whole)

    def test_damage_never_raises(self, tmp_path: Path) -> None:
        """Flipped, removed and doubled bytes, missing files. Whether they are noticed is the format's own affair."""
        chance = random.Random(1)
        path = self.write(tmp_path)
        order = self.order(tmp_path, path)
        for _ in range(self.mutations):
            file = tmp_path / chance.choice(order)
            whole = file.read_bytes()
            file.unlink()
            if chance.random() > 0.05:
                file.write_bytes(damaged(whole, chance))
            self.facts_below(tmp_path)
            file.write_bytes(whole)


def damaged(data: bytes, chance: random.Random) -> bytes:
    """A copy with a few bytes flipped, removed or doubled."""
    copy = bytearray(data)
    for _ in range(chance.randrange(1, 8)):
        if not copy:
            break
        begin = chance.randrange(len(copy))
        end = min(len(copy), begin + chance.choice((1, 1, 1, 4, 64)))
        length = end - begin
        copy[begin:end] = chance.choice((b"", copy[begin:end] * 2, chance.randbytes(length), b"\xff" * length))
    return bytes(copy)


def _hold(facts: Facts) -> None:
    assert isinstance(facts, Facts)
    assert facts.evidence, "a verdict without evidence"
    assert facts.format
    assert facts.step is None or 0 <= facts.step < 2**63
    assert facts.epoch is None or 0 <= facts.epoch < 2**63
    assert all(isinstance(k, str) and isinstance(v, float) for k, v in facts.metrics.items())
    assert all(isinstance(v, str) for v in facts.variants)


def _lengths(size: int, cuts: int) -> Iterator[int]:
    """Proper prefixes: nothing, the first and last few bytes, and evenly between."""
    even = {size * n // cuts for n in range(cuts)}
    ends = {*range(min(size, 12)), *range(max(0, size - 24), size)}
    yield from (length for length, _ in pairwise([*sorted(even | ends), size]) if length < size)


def _contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}
