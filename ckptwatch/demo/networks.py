"""The networks that the demo's metrics rest on, made here instead of downloaded: `python -m ckptwatch.demo.networks DIR`.

    DIR/features.pt   classifier of scenes, a torch-fidelity feature extractor   FID, KID, Inception Score
    DIR/clip/         tiny open_clip model, `local-dir:DIR/clip`                 CLIP score
    DIR/lpips.pt      AlexNet trunk and LPIPS heads                             LPIPS
    DIR/networks.json version, seed and digests; says whether the set is up to date
"""

import argparse
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ckptwatch.demo import scenes
from ckptwatch.demo.clip import train_clip, write_clip
from ckptwatch.demo.features import FEATURES_LAYER, LOGITS_LAYER, NAME, register, train_features
from ckptwatch.demo.perceptual import train_perceptual

__all__ = ["FEATURES_LAYER", "LOGITS_LAYER", "NAME", "NetworkFiles", "make_networks", "register"]

VERSION = 2  # raise it when anything changes that the weights depend on
PICTURES = 3000


@dataclass(frozen=True, kw_only=True)
class NetworkFiles:
    """Where a set of networks lies."""

    features: Path
    clip: Path  # a directory
    lpips: Path


def make_networks(
    directory: Path, seed: int = 0, on_progress: Callable[[str, float], None] | None = None
) -> NetworkFiles:
    """Train the networks into `directory` unless an up-to-date set is there. Returns where they lie.

    `on_progress` is given a phase ("features", "clip", "lpips") and how much of it is done, 0 … 1. The same seed gives
    the same weights on the same machine and number of threads; the caller's random state is left as it was.
    """
    files = NetworkFiles(features=directory / "features.pt", clip=directory / "clip", lpips=directory / "lpips.pt")
    if _up_to_date(directory, seed):
        return files
    directory.mkdir(parents=True, exist_ok=True)
    _note(directory).unlink(missing_ok=True)  # from here on the set is not whole

    def told(phase: str) -> Callable[[float], None]:
        return lambda part: on_progress(phase, part) if on_progress else None

    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory(dir=directory, prefix=".making-") as making:
        torch.manual_seed(seed)
        rng = np.random.default_rng([seed, 3])
        drawn = scenes.draw(rng, PICTURES)
        pictures = torch.from_numpy(scenes.render(drawn)).permute(0, 3, 1, 2)
        new = Path(making)
        torch.save(train_features(pictures, drawn, rng=rng, on_progress=told("features")), new / "features.pt")
        write_clip(new / "clip", train_clip(pictures, drawn, rng=rng, on_progress=told("clip")))
        torch.save(train_perceptual(pictures, drawn, rng=rng, on_progress=told("lpips")), new / "lpips.pt")
        files.clip.mkdir(exist_ok=True)
        for made in _files(new):
            os.replace(made, directory / made.relative_to(new))
    note = {"version": VERSION, "seed": seed, "files": _digests(directory)}
    unfinished = _note(directory).with_suffix(".tmp")
    unfinished.write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
    os.replace(unfinished, _note(directory))
    return files


def _files(directory: Path) -> list[Path]:
    """The files a set consists of, also where they do not exist."""
    clip = directory / "clip"
    return [
        directory / "features.pt", clip / "open_clip_config.json", clip / "open_clip_model.safetensors",
        directory / "lpips.pt",
    ]


def _note(directory: Path) -> Path:
    return directory / "networks.json"


def _digests(directory: Path) -> dict[str, str]:
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in _files(directory)
    }


def _up_to_date(directory: Path, seed: int) -> bool:
    try:
        note = json.loads(_note(directory).read_text(encoding="utf-8"))
        return note == {"version": VERSION, "seed": seed, "files": _digests(directory)}
    except (OSError, ValueError):
        return False


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ckptwatch.demo.networks", description="Make the demo's networks.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)

    def show(phase: str, part: float) -> None:
        if part == 1:
            print(f"{phase}: done", flush=True)

    files = make_networks(given.directory, given.seed, show)
    print(f"features {files.features}\nclip     {files.clip}\nlpips    {files.lpips}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
