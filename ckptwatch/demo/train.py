"""The demo's training job: `python -m ckptwatch.demo.train --out runs/NAME`.

A trainer as people write them: it knows nothing of ckptwatch, saves with `torch.save` straight to the final path, and
has a bad learning rate schedule. The rate falls for half of the steps, then climbs a hundredfold and more. Samples go on
improving while it is still low, until about 60 % of the steps, and become bad again: the last checkpoint is not the best.

The state after step s depends on the seed and s alone (batches are drawn from (seed, epoch) and (seed, step)), so a
run that was killed and resumed ends with the weights it would have had anyway.
"""

import argparse
import copy
import json
import math
import pickle
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ckptwatch.demo import scenes
from ckptwatch.demo.generator import PLACES, Generator, places, tokenise

PICTURES = 2048
BATCH = 48
PLACES_PER_PICTURE = 128
EMA_DECAY = 0.98
LOG_EVERY = 20
WARMUP = 40

RATE = 4e-3
RATE_LOW = 4e-4   # at the turn
RATE_HIGH = 1e-1  # at the end
TURN = 0.5


def rate(step: int, steps: int) -> float:
    """Learning rate of one step: short warm-up, cosine down until the turn, then exponentially up."""
    turn = TURN * steps
    if step <= turn:
        falling = RATE_LOW + (RATE - RATE_LOW) * (1 + math.cos(math.pi * step / turn)) / 2
        return falling * min(1.0, step / min(WARMUP, turn))
    return RATE_LOW * (RATE_HIGH / RATE_LOW) ** ((step - turn) / (steps - turn))


class Dataset:
    """Scenes with their pictures, and the batch that belongs to a step."""

    def __init__(self, *, seed: int, count: int = PICTURES) -> None:
        drawn = scenes.draw(np.random.default_rng([seed, 0]), count)
        self.seed = seed
        self.pixels = torch.from_numpy(scenes.render(drawn)).view(count, PLACES, 3)
        self.tokens = tokenise(drawn.captions)
        # The latent of a training picture is known, because the picture was made from it: no encoder, no adversary.
        self.latents = torch.from_numpy(drawn.nuisance)
        self.places = places()
        self.steps_per_epoch = max(1, count // BATCH)
        self._order: tuple[int, np.ndarray] | None = None

    def epoch(self, step: int) -> int:
        """Epoch of a step; both are counted from 1 and 0 respectively."""
        return (step - 1) // self.steps_per_epoch

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """tokens (b, words), latents (b, 5), where (b, p, 2), colours (b, p, 3) in 0 … 1."""
        epoch = self.epoch(step)
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng([self.seed, 1, epoch]).permutation(len(self.pixels)))
        start = (step - 1) % self.steps_per_epoch * BATCH
        chosen = torch.from_numpy(self._order[1][start : start + BATCH])
        spots = np.random.default_rng([self.seed, 2, step]).integers(PLACES, size=(len(chosen), PLACES_PER_PICTURE))
        spots = torch.from_numpy(spots)
        colours = self.pixels[chosen[:, None], spots].float() / 255
        return self.tokens[chosen], self.latents[chosen], self.places[spots], colours


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What was asked for on the command line."""

    out: Path
    steps: int = 1600
    every: int = 200
    seed: int = 0
    nan_at: int | None = None
    resume: bool = False

    @property
    def checkpoints(self) -> Path:
        return self.out / "checkpoints"


class Trainer:
    """Model, its moving average and its optimiser, at one step."""

    def __init__(self, *, seed: int, steps: int) -> None:
        torch.manual_seed(seed)
        self.steps = steps
        self.dataset = Dataset(seed=seed)
        self.model = Generator()
        self.average = copy.deepcopy(self.model.state_dict())
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=RATE, betas=(0.9, 0.99))
        self.step = 0

    def advance(self, *, broken: bool = False) -> dict[str, float]:
        """Take one step and say what it was like. `broken` puts a NaN into the batch, as a corrupt picture would."""
        self.step += 1
        learning_rate = rate(self.step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        tokens, latents, where, colours = self.dataset.batch(self.step)
        if broken:
            colours[0] = float("nan")
        loss = torch.nn.functional.mse_loss(self.model(tokens, latents, where), colours)
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                self.average[name].lerp_(value, 1 - EMA_DECAY)
        return {"loss": loss.item(), "grad_norm": norm.item(), "lr": learning_rate}

    def state(self, loss: float) -> dict[str, Any]:
        """What goes into a checkpoint. The tensors are the living ones."""
        return {
            "model": self.model.state_dict(), "model_ema": self.average, "optimizer": self.optimizer.state_dict(),
            "step": self.step, "epoch": self.dataset.epoch(max(1, self.step)), "loss": loss,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over weights, average and optimiser; the step is the caller's business."""
        self.model.load_state_dict(state["model"])
        self.average = copy.deepcopy(dict(state["model_ema"]))
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))


def newest_loadable(directory: Path) -> dict[str, Any] | None:
    """The state in the checkpoint with the highest step that can be read and has finite weights."""
    for path in sorted(directory.glob("[0-9]*.pt"), reverse=True):
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            finite = all(bool(value.isfinite().all()) for value in state["model"].values())
        except (RuntimeError, EOFError, OSError, KeyError, ValueError, pickle.UnpicklingError) as error:
            print(f"ignoring {path}: {str(error).splitlines()[0] if str(error) else type(error).__name__}", flush=True)
            continue
        if finite:
            return state
        print(f"ignoring {path}: weights are not finite", flush=True)
    return None


def train(plan: Plan, say: Callable[[str], None] = print) -> None:
    """Run the whole training. Writes `<out>/checkpoints/{step:07d}.pt` and appends to `<out>/log.jsonl`."""
    plan.checkpoints.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(seed=plan.seed, steps=plan.steps)
    found = newest_loadable(plan.checkpoints) if plan.resume else None
    if found is not None:
        trainer.restore(found)
        trainer.step = int(found["step"])
        say(f"resumed from step {trainer.step}")
    good = copy.deepcopy(trainer.state(math.nan))
    recent: list[float] = []
    with (plan.out / "log.jsonl").open("a", encoding="utf-8") as log:
        while trainer.step < plan.steps:
            entry = trainer.advance(broken=trainer.step + 1 == plan.nan_at)
            recent.append(entry["loss"])
            step, epoch = trainer.step, trainer.dataset.epoch(trainer.step)
            saves = step % plan.every == 0 or step == plan.steps
            if saves or step % LOG_EVERY == 0:
                entry["loss"] = sum(recent) / len(recent)
                recent.clear()
                log.write(json.dumps({"step": step, "epoch": epoch, **entry}) + "\n")
                log.flush()
                say(f"step {step:5d}/{plan.steps}  epoch {epoch:3d}  loss {entry['loss']:.5f}  lr {entry['lr']:.5f}")
            if not saves:
                continue
            path = plan.checkpoints / f"{step:07d}.pt"
            torch.save(trainer.state(entry["loss"]), path)
            say(f"saved {path}")
            if math.isfinite(entry["loss"]):
                good = copy.deepcopy(trainer.state(entry["loss"]))
            else:
                say(f"loss is {entry['loss']}: back to the weights of step {good['step']}, going on from step {step}")
                trainer.restore(good)
    say(f"finished at step {trainer.step}")


def parse(arguments: Sequence[str] | None = None) -> tuple[Plan, int]:
    parser = argparse.ArgumentParser(prog="python -m ckptwatch.demo.train", description="Train the demo's generator.")
    parser.add_argument("--out", type=Path, required=True, help="run directory, e.g. runs/NAME")
    parser.add_argument("--steps", type=int, default=Plan.steps)
    parser.add_argument("--every", type=int, default=Plan.every, help="steps between checkpoints")
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument("--nan-at", type=int, metavar="STEP", help="diverge here once, and recover")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint that can be loaded")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    given = parser.parse_args(arguments)
    if min(given.steps, given.every, given.threads) < 1:
        parser.error("--steps, --every and --threads must be at least 1")
    if given.nan_at is not None and (given.nan_at < 1 or given.nan_at % given.every or given.nan_at > given.steps):
        parser.error(f"--nan-at must be one of the steps that are saved: a multiple of {given.every}")
    plan = Plan(
        out=given.out, steps=given.steps, every=given.every, seed=given.seed, nan_at=given.nan_at, resume=given.resume
    )
    if not plan.resume and any(plan.checkpoints.glob("[0-9]*.pt")):
        parser.error(f"{plan.checkpoints} already holds checkpoints: add --resume, or choose another --out")
    return plan, given.threads


def main(arguments: Sequence[str] | None = None) -> int:
    plan, threads = parse(arguments)
    torch.set_num_threads(threads)
    train(plan, say=lambda line: print(line, flush=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
