"""Writes files in two halves, and has somebody look between: for layouts whose library cannot run here."""

import io
import json
import shutil

import torch
import torch.distributed.checkpoint as dcp


class Writer:
    def __init__(self, rehearsal, name):
        self.rehearsal, self.out = rehearsal, rehearsal.out / name
        self.out.mkdir()

    def write(self, name, data):
        """In place, as most trainers do."""
        path = self.out / name
        if not path.parent.exists():
            path.parent.mkdir(parents=True)
        with path.open("wb") as file:
            file.write(data[:len(data) // 2])
            file.flush()
            self.rehearsal.look(path)
            file.write(data[len(data) // 2:])
        self.rehearsal.look(path)

    def torch(self, name, content, **how):
        data = io.BytesIO()
        torch.save(content, data, **how)
        self.write(name, data.getvalue())

    def json(self, name, content):
        self.write(name, json.dumps(content).encode())

    def text(self, name, content):
        self.write(name, content.encode())

    def distributed(self, name, content):
        dcp.save(content, checkpoint_id=self.out / name, no_dist=True)
        self.rehearsal.look(self.out / name)

    def remove(self, name):
        path = self.out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
        self.rehearsal.look(path)

    def link(self, name, target):
        (self.out / name).unlink(missing_ok=True)
        self.rehearsal.look(self.out / name)
        (self.out / name).symlink_to(target)

    def saved(self, name, format_, **facts):
        self.rehearsal.saved(self.out / name, format_, **facts)
