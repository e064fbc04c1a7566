"""Small programs written by torch itself."""

import warnings
from pathlib import Path

import torch


class Scaled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 3)

    def forward(self, x):
        return self.layer(x)


def write_program(path: Path, kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "script":
            torch.jit.save(torch.jit.trace(Scaled(), torch.zeros(2, 3)), path)
        else:
            torch.export.save(torch.export.export(Scaled(), (torch.zeros(2, 3),)), path.with_suffix(".pt2"))
            path.with_suffix(".pt2").rename(path)
