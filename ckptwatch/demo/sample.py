"""The demo's sampler as a command: `python -m ckptwatch.demo.sample --ckpt F --prompts FILE --count N --out DIR`.

Writes DIR/000000.png …; picture i has seed S + i and prompt line i (modulo their number), and equals that of
`demo.sampler` bit for bit.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Part:
    """The samples `first` … of one command."""

    indices: range
    seeds: list[int]
    prompts: list[str]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ckptwatch.demo.sample", description="Draw with a demo checkpoint.")
    parser.add_argument("--ckpt", type=Path, required=True)
    parser.add_argument("--weights", default="", help="model or model_ema (default)")
    parser.add_argument("--prompts", type=Path, required=True, help="text file, one prompt a line")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args(arguments)
    # As ckptwatch reads them: blank lines are no prompts.
    prompts = [line.strip("\r") for line in given.prompts.read_text(encoding="utf-8").split("\n") if line.strip()]
    if not prompts:
        parser.error(f"{given.prompts} has no prompts: one a line is needed")

    # After the arguments, because torch takes seconds to import and a mistyped option should not.
    from PIL import Image

    from ckptwatch.demo.sampler import create

    sampler = create(given.device)
    sampler.load(given.ckpt, given.weights)
    given.out.mkdir(parents=True, exist_ok=True)
    part = Part(
        indices=range(given.count), seeds=[given.seed + i for i in range(given.count)],
        prompts=[prompts[i % len(prompts)] for i in range(given.count)],
    )
    for index, picture in zip(part.indices, sampler.sample(part), strict=True):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(given.out / f"{index:06d}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
