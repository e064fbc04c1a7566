"""For authors of plugins: conformance suites. Subclass one in your tests, and pytest runs it on your implementation."""

import random
from pathlib import Path

from ckptwatch.formats.base import Entry, Format
from ckptwatch.model import Facts

__all__ = ["FormatConformance", "entry_at"]


def entry_at(path: Path) -> Entry:
    """What the scan shows a format of a path."""
    info = path.lstat()
    return Entry(path=path, is_dir=path.is_dir(), device=info.st_dev, inode=info.st_ino, size=info.st_size,
                 mtime_ns=info.st_mtime_ns, ctime_ns=info.st_ctime_ns, links=info.st_nlink)


class FormatConformance:
    """What every format of single files owes. Name your subclass Test… and give it `make_format` and `write`.

        class TestMyFormat(FormatConformance):
            def make_format(self): return MyFormat()
            def write(self, directory): ...; return directory / "0001.mine"
    """

    every = 1          # every n-th length is tried as a truncation; raise it where your smallest file is large
    mutations = 200    # damaged copies tried

    def make_format(self) -> Format:
        raise NotImplementedError

    def write(self, directory: Path) -> Path:
        """Write a small complete checkpoint with the format's usual writer; return its path."""
        raise NotImplementedError

    def examine_bytes(self, data: bytes, path: Path) -> Facts:
        """The facts of these bytes under that name, held against what holds whatever the bytes are."""
        path.write_bytes(data)
        format_ = self.make_format()
        facts = format_.examine(path)
        assert isinstance(facts, Facts)
        assert facts.format == format_.name
        assert facts.evidence, "a verdict without evidence"
        assert path.read_bytes() == data, "examining changed the file"
        assert facts.step is None or 0 <= facts.step < 2**63
        assert facts.epoch is None or 0 <= facts.epoch < 2**63
        assert all(isinstance(k, str) and isinstance(v, float) for k, v in facts.metrics.items())
        assert all(isinstance(v, str) for v in facts.variants)
        return facts

    # ---- the promises ----------------------------------------------------------------------------------------------

    def test_it_is_a_format_with_a_name(self) -> None:
        format_ = self.make_format()
        assert isinstance(format_, Format)
        assert format_.name == format_.name.strip().lower() != ""

    def test_it_claims_what_it_is_for_by_name_alone(self, tmp_path: Path) -> None:
        path = self.write(tmp_path)
        entry = entry_at(path)
        path.unlink()
        assert self.make_format().claims(entry)

    def test_it_leaves_everything_else_alone(self, tmp_path: Path) -> None:
        for name in ("notes.txt", "events.out.tfevents.1.host", "config.yaml", "image.png", "train.log", "latest"):
            (tmp_path / name).write_bytes(b"")
            assert not self.make_format().claims(entry_at(tmp_path / name)), name

    def test_the_whole_is_complete(self, tmp_path: Path) -> None:
        path = self.write(tmp_path)
        facts = self.examine_bytes(path.read_bytes(), path)
        assert facts.complete, facts.evidence
        assert facts.fingerprint

    def test_every_proper_prefix_is_incomplete_with_evidence(self, tmp_path: Path) -> None:
        path = self.write(tmp_path)
        whole = path.read_bytes()
        ends = range(16), range(len(whole) - 64, len(whole))
        for length in sorted({*range(0, len(whole), self.every), *(n for end in ends for n in end if 0 <= n < len(whole))}):
            facts = self.examine_bytes(whole[:length], path)
            assert not facts.complete, f"{length} of {len(whole)} bytes pass for the whole: {facts.evidence}"

    def test_the_same_bytes_have_the_same_fingerprint_wherever_they_lie(self, tmp_path: Path) -> None:
        path = self.write(tmp_path)
        (tmp_path / "copy").mkdir()
        copy = tmp_path / "copy" / path.name
        assert self.examine_bytes(path.read_bytes(), copy) == self.make_format().examine(path)

    def test_garbage_never_raises_and_is_never_complete(self, tmp_path: Path) -> None:
        chance = random.Random(0)
        path = self.write(tmp_path)
        for garbage in (b"", b"\0", b"\0" * 4096, b"\xff" * 100, b"PK\x03\x04", b"PK\x05\x06" + b"\0" * 18, b"{}",
                        b"\x80\x02}.", *(chance.randbytes(chance.randrange(1, 3000)) for _ in range(20))):
            assert not self.examine_bytes(garbage, path).complete, garbage[:40]

    def test_damage_never_raises(self, tmp_path: Path) -> None:
        """Flipped, removed and doubled bytes. Whether they are noticed is the format's own affair."""
        chance = random.Random(1)
        path = self.write(tmp_path)
        whole = path.read_bytes()
        for _ in range(self.mutations):
            data = bytearray(whole)
            for _ in range(chance.randrange(1, 8)):
                begin = chance.randrange(len(data))
                end = min(len(data), begin + chance.choice((1, 1, 1, 4, 64)))
                length = end - begin
                data[begin:end] = chance.choice((b"", data[begin:end] * 2, chance.randbytes(length), b"\xff" * length))
                if not data:
                    break
            self.examine_bytes(bytes(data), path)
