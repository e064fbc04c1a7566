"""A root with recorded checkpoints and the deleter at work on it."""

import os
import time

from ckptwatch.apply.pruner import Pruner
from ckptwatch.formats.base import Claim, claim_at, format_named
from ckptwatch.model import Facts, RemovalState, Role, evolve
from ckptwatch.store import checkpoints, events, removals, roots, runs
from ckptwatch.store.database import open_writing
from ckptwatch.watch.sightings import sight
from tests.support import save


class Yard:
    """A root with recorded checkpoints and a pruner."""

    def __init__(self, base, root="runs"):
        self.base, self.root = base, base / root
        self.root.mkdir(exist_ok=True)
        self.db = open_writing(base / "state")
        with self.db.write() as conn:
            if roots.get(conn, self.root) is None:
                roots.record(conn, self.root, uuid="u", device=1)
        self.pruner = Pruner(self.db, self.root)

    def record(self, name, step=1):
        """Take a file that is there into the record."""
        claim = claim_at(self.root / name)
        if claim is None:
            raise FileNotFoundError(name)
        return self.record_claim(claim, format_named(claim.format).examine(claim), step)

    def record_claim(self, claim, facts, step=1):
        members = tuple(m.name for m in claim.members) if len(claim.members) > 1 else ()
        facts = evolve(facts, step=step, complete=True)
        with self.db.write() as conn:
            name = claim.path.relative_to(self.root).parts[0]
            run, _ = runs.run_named(conn, self.root, name, path=claim.path.parent, now=0.0)
            return checkpoints.record(conn, run_id=run.id, path=claim.path, members=members, identity=sight(claim).identity,
                                      now=0.0, facts=facts, role=Role.REGULAR, generation=0)

    def make_several(self, kind, name="a/0100"):
        """A checkpoint of several files, recorded: a `directory` with some in it, or a `set` of files and a directory."""
        top = self.root / name
        contents = {"model.bin": b"m" * 3000, "deep/er/part": b"p" * 2000, "meta.json": b"{}"}
        base = top if kind == "directory" else top.parent
        for part, data in contents.items():
            (base / part).parent.mkdir(parents=True, exist_ok=True)
            (base / part).write_bytes(data)
        settled = time.time() - 60  # as after a quiet time; the clock of files ticks in milliseconds
        for place in (*(base / part for part in contents), base / "deep/er", base / "deep", base):
            os.utime(place, (settled, settled))
        members = (top,) if kind == "directory" else tuple(base / m for m in ("deep", "meta.json", "model.bin"))
        path = top if kind == "directory" else base / "model.bin"
        claim = Claim(format="several", path=path, members=members, whole=kind == "directory")
        return self.record_claim(claim, Facts(format="several", complete=True, evidence="made")), contents

    def make(self, name="a/0100.pt", **content):
        data = save(self.root / name, content, padding=3000)
        return self.record(name), data

    def remove(self, checkpoint, grace=60.0):
        return self.pruner.remove(checkpoint, run="a", reason="rank 9", grace=grace, now=100.0)

    def restore(self, removal):
        return self.pruner.restore(removal, run="a", by="alice", now=101.0)

    def purge(self, removal):
        self.pruner.purge(removal, run="a", by="alice", now=102.0)

    def state(self, checkpoint):
        with self.db.read() as conn:
            return checkpoints.checkpoint(conn, checkpoint.id).state

    def journal(self):
        with self.db.read() as conn:
            return [r.state for r in removals.in_state(conn, *RemovalState)]

    def kinds(self):
        with self.db.read() as conn:
            return [e.kind for e in reversed(events.recent(conn))]
