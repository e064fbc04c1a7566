"""`python -m ckptwatch.demo.inputs DIR`: originals, prompts and networks, by a process of its own because torch is heavy."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ckptwatch.demo import scenes
from ckptwatch.demo.recipe import write_demo_inputs


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints `PHASE PERCENT` lines while it trains the networks."""
    parser = argparse.ArgumentParser(prog="python -m ckptwatch.demo.inputs", description="Make the demo's inputs.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--count", type=int, default=256, help="originals and prompts")
    parser.add_argument("--no-networks", action="store_true", help="the standard networks will be used")
    given = parser.parse_args(arguments)
    if given.no_networks:
        scenes.write_references(given.directory, given.count)
        return 0
    torch.set_num_threads(1)  # the weights depend on it, and two gain little on networks this small
    write_demo_inputs(given.directory, given.count, on_progress=lambda phase, part: print(phase, f"{part:.0%}", flush=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
