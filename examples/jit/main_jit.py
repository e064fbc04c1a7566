"""Training in the shape of JiT's `main_jit.py`: one process, no GPU, half a minute.

It writes what is written there, in the same rhythm at a smaller scale:

    <output_dir>/checkpoint-last.pth   every --save_last_freq epochs, each time over the former
                 checkpoint-8.pth      every --milestone_freq epochs, for good

with the keys model, model_ema1, model_ema2, optimizer, epoch and args. Epochs count from 0.
"""

import argparse
import copy
import math
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from denoiser import Denoiser
from pictures import draw, render
from torch import Tensor

PICTURES = 2048


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser("JiT", description="Train a small class-conditional transformer on pixels.")
    parser.add_argument("--output_dir", default="runs/jit")
    parser.add_argument("--resume", default="", metavar="DIR", help="go on from checkpoint-last.pth in it")
    parser.add_argument("--epochs", type=int, default=26)
    parser.add_argument("--steps_per_epoch", type=int, default=16)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=4e-3, help="constant after the warm-up, as in JiT")
    parser.add_argument("--warmup_epochs", type=int, default=2)
    parser.add_argument("--ema_decay1", type=float, default=0.98, help="of model_ema1; at full size 0.9999")
    parser.add_argument("--ema_decay2", type=float, default=0.92, help="of model_ema2; at full size 0.9996")
    parser.add_argument("--save_last_freq", type=int, default=2, help="epochs; at full size 5")
    parser.add_argument("--milestone_freq", type=int, default=8, help="epochs; at full size 100")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


class Data:
    """Pictures by class, and the batch of a step, which depends on the step alone: a resumed run sees what it would have."""

    def __init__(self, args: argparse.Namespace) -> None:
        drawn = draw(np.random.default_rng([args.seed, 0]), PICTURES)
        self.args = args
        self.pictures = torch.from_numpy(render(drawn)).permute(0, 3, 1, 2)
        self.labels = torch.from_numpy(drawn.classes)
        self.left_open = torch.from_numpy(drawn.nuisance)

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor, torch.Generator]:
        rng = torch.Generator().manual_seed(self.args.seed * 1_000_003 + step)
        rows = torch.randint(PICTURES, (self.args.batch_size,), generator=rng)
        return self.pictures[rows].float() / 127.5 - 1, self.labels[rows], self.left_open[rows], rng


class Trainer:
    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        self.args = args
        self.data = Data(args)
        self.model = Denoiser()
        self.averages = [copy.deepcopy(self.model.state_dict()) for _ in range(2)]
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    def train_one_epoch(self, epoch: int) -> float:
        """The mean loss of the epoch."""
        args, total = self.args, 0.0
        for step in range(epoch * args.steps_per_epoch, (epoch + 1) * args.steps_per_epoch):
            for group in self.optimizer.param_groups:
                group["lr"] = args.lr * min(1.0, (step + 1) / (args.warmup_epochs * args.steps_per_epoch))
            loss = self.model(*self.data.batch(step))
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            total += float(loss.detach())
            with torch.no_grad():
                for average, decay in zip(self.averages, (args.ema_decay1, args.ema_decay2), strict=True):
                    for name, value in self.model.state_dict().items():
                        average[name].lerp_(value, 1 - decay)
        return total / args.steps_per_epoch

    def save_model(self, epoch: int, epoch_name: str) -> None:
        path = Path(self.args.output_dir) / f"checkpoint-{epoch_name}.pth"
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")  # what lies under the name is whole at any time
        torch.save({
            "model": self.model.state_dict(), "model_ema1": self.averages[0], "model_ema2": self.averages[1],
            "optimizer": self.optimizer.state_dict(), "epoch": epoch, "args": self.args,
        }, temporary)
        os.replace(temporary, path)
        print(f"saved {path}", flush=True)

    def resume(self, directory: Path) -> int:
        """Goes on from the rolling checkpoint; returns the first epoch to train."""
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = torch.load(directory / "checkpoint-last.pth", map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.averages = [state["model_ema1"], state["model_ema2"]]
        self.optimizer.load_state_dict(state["optimizer"])
        return int(state["epoch"]) + 1


def main() -> int:
    args = parse_args()
    torch.set_num_threads(args.threads)
    trainer = Trainer(args)
    start = trainer.resume(Path(args.resume)) if args.resume else 0
    for epoch in range(start, args.epochs):
        begin = time.monotonic()
        loss = trainer.train_one_epoch(epoch)
        print(f"epoch {epoch}  loss {loss:.4f}  {time.monotonic() - begin:.1f} s", flush=True)
        if not math.isfinite(loss):
            sys.exit("Loss is not finite, stopping training")
        if epoch % args.save_last_freq == 0 or epoch + 1 == args.epochs:
            trainer.save_model(epoch, "last")
        if epoch % args.milestone_freq == 0 and epoch > 0:
            trainer.save_model(epoch, str(epoch))
    return 0


if __name__ == "__main__":
    sys.exit(main())
