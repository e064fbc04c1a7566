"""A root with recorded checkpoints and the deleter at work on it."""

from ckptwatch.apply.pruner import Pruner
from ckptwatch.formats.torch_zip import TorchZip
from ckptwatch.model import RemovalState, Role, evolve
from ckptwatch.store import checkpoints, events, removals, roots, runs
from ckptwatch.store.database import open_writing
from ckptwatch.testing import entry_at
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
        path = self.root / name
        with self.db.write() as conn:
            run, _ = runs.run_named(conn, self.root, name.split("/")[0], path=path.parent, now=0.0)
            return checkpoints.record(conn, run_id=run.id, path=path, identity=entry_at(path).identity, now=0.0,
                                      facts=evolve(TorchZip().examine(path), step=step, complete=True),
                                      role=Role.REGULAR, generation=0)

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
