"""Training in the shape of SDPose's on MMPose: one process, no GPU, a quarter of a minute.

It writes what is written there, in the same rhythm at a smaller scale:

    <work_dir>/epoch_5.pth, epoch_10.pth …   every --interval epochs: meta (epoch, iter), state_dict, optimizer
               latest.pth                    a link to the newest of them
               20260101_120000.log.json      one JSON object a line: `mode` train with every loss term, val with AP
               20260101_120000.log           the same in words

`--ill` makes it go wrong on purpose, in the ways that a monitor should notice.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from pose import CELLS, JOINTS, SIZE, PoseNet, average_precision, figures, losses, predict
from torch import Tensor

VALIDATION = 96  # pictures
ILL = {  # at or from the epoch --ill-at on, where it is not all the time
    "spike": "an epoch of garbage; the loss jumps and comes back",
    "nan": "an overflow: loss and weights are NaN from then on",
    "stuck": "validation takes heatmap cells for pixels: AP is 0.0 all the time",
    "overfit": "the same few pictures over and over: the validation loss rises while that of training falls",
    "drop": "annotations mixed up: AP falls",
    "frozen": "a learning rate of 0: the loss never falls",
    "diverge": "a wrong sign: the loss rises for good",
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a small heatmap pose network on stick figures.")
    parser.add_argument("--work-dir", default="runs/sdpose")
    parser.add_argument("--epochs", type=int, default=60, help="at full size 210")
    parser.add_argument("--iters", type=int, default=6, help="in an epoch")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--interval", type=int, default=5, help="epochs between checkpoints, and validations; there 10")
    parser.add_argument("--max-keep-ckpts", type=int, default=-1, help="-1: they are left to ckptwatch")
    parser.add_argument("--log-interval", type=int, default=2, help="iterations; at full size 50")
    parser.add_argument("--ill", choices=sorted(ILL), help="; ".join(f"{name}: {words}" for name, words in ILL.items()))
    parser.add_argument("--ill-at", type=int, default=36, metavar="EPOCH", help="from when on")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds to wait after each epoch, for watching it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


class Logger:
    """Both logs of MMCV, each line written at once."""

    def __init__(self, directory: Path, args: argparse.Namespace) -> None:
        stem = time.strftime("%Y%m%d_%H%M%S")
        self._json = (directory / f"{stem}.log.json").open("a", buffering=1)
        self._text = (directory / f"{stem}.log").open("a", buffering=1)
        self._json.write(json.dumps({"env_info": f"torch {torch.__version__}", "config": vars(args), "seed": args.seed,
                                     "exp_name": "sdpose"}) + "\n")
        self.say(f"workflow: [('train', 1)], max: {args.epochs} epochs")

    def say(self, words: str) -> None:
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')},{int(time.time() * 1000) % 1000:03d} - mmpose - INFO - {words}"
        self._text.write(line + "\n")
        print(line, flush=True)

    def train(self, epoch: int, iteration: int, iters: int, values: dict[str, float]) -> None:
        self._json.write(json.dumps({"mode": "train", "epoch": epoch, "iter": iteration, **values}) + "\n")
        terms = ", ".join(f"{k}: {v:.4f}" for k, v in values.items() if k != "lr")
        self._text.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')},000 - mmpose - INFO - Epoch [{epoch}][{iteration}/{iters}]\t"
                         f"lr: {values['lr']:.3e}, {terms}\n")

    def val(self, epoch: int, batches: int, values: dict[str, float]) -> None:
        self._json.write(json.dumps({"mode": "val", "epoch": epoch, "iter": batches, **values}) + "\n")
        self.say(f"Epoch(val) [{epoch}][{batches}]\t" + ", ".join(f"{k}: {v:.4f}" for k, v in values.items()))


class Trainer:
    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        self.args = args
        self.directory = Path(args.work_dir)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.net = PoseNet()
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=args.lr)
        self.pictures, self.joints = figures(np.random.default_rng([args.seed, 0]), 1024)
        self.held_out = figures(np.random.default_rng([args.seed, 1]), VALIDATION)
        self.rng = torch.Generator().manual_seed(args.seed)
        self.iteration = 0
        self.log = Logger(self.directory, args)

    def run(self) -> None:
        for epoch in range(1, self.args.epochs + 1):
            self._train(epoch)
            if epoch % self.args.interval == 0:
                self._save(epoch)
                self._validate(epoch)
            time.sleep(self.args.pause)

    # ---- one epoch -------------------------------------------------------------------------------------------------

    def _train(self, epoch: int) -> None:
        for iteration in range(1, self.args.iters + 1):
            self.iteration += 1
            pictures, joints = self._batch(epoch, iteration)
            lr = self._rate(epoch)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
                group["maximize"] = self.args.ill == "diverge" and epoch >= self.args.ill_at
            terms = losses(self.net, pictures, joints)
            self.optimizer.zero_grad()
            terms["loss"].backward()
            self.optimizer.step()
            if iteration % self.args.log_interval == 0:
                values = {name: float(term.detach()) for name, term in terms.items()}
                self.log.train(epoch, iteration, self.args.iters, {"lr": lr, **values})

    def _batch(self, epoch: int, iteration: int) -> tuple[Tensor, Tensor]:
        few = self.args.ill == "overfit" and epoch >= self.args.ill_at
        rows = torch.randint(3 if few else len(self.pictures), (self.args.batch_size,), generator=self.rng)
        pictures, joints = self.pictures[rows], self.joints[rows]
        if self.args.ill == "spike" and epoch == self.args.ill_at:
            joints = SIZE - joints  # upside down
        if self.args.ill == "nan" and epoch == self.args.ill_at and iteration == 3:
            pictures = pictures * float("inf")
        if self.args.ill == "drop" and epoch >= self.args.ill_at:
            joints = joints.roll(1, 1)
        return pictures, joints

    def _rate(self, epoch: int) -> float:
        """Constant, and a third of it in the last sixth, as in the step schedules of MMPose."""
        if self.args.ill == "frozen":
            return 0.0
        if self.args.ill == "diverge" and epoch >= self.args.ill_at:
            return 0.01 * self.args.lr
        return self.args.lr * (0.3 if epoch > self.args.epochs * 5 // 6 and self.args.ill is None else 1.0)

    @torch.no_grad()
    def _validate(self, epoch: int) -> None:
        pictures, joints = self.held_out
        self.net.eval()
        terms = {k: float(v) for k, v in losses(self.net, pictures, joints).items()}
        found = predict(self.net, pictures)
        if self.args.ill == "stuck":
            found = found * (CELLS / SIZE) - SIZE
        scores = average_precision(found, joints)
        self.net.train()
        self.log.val(epoch, len(pictures) // self.args.batch_size, {**scores, **terms})

    # ---- checkpoints -----------------------------------------------------------------------------------------------

    def _save(self, epoch: int) -> None:
        path = self.directory / f"epoch_{epoch}.pth"
        self.log.say(f"Saving checkpoint at {epoch} epochs")
        torch.save({
            "meta": {"epoch": epoch, "iter": self.iteration, "mmpose_version": "0.29.0", "time": time.asctime(),
                     "dataset": {"joints": JOINTS}},
            "state_dict": self.net.state_dict(), "optimizer": self.optimizer.state_dict(),
        }, path)
        latest = self.directory / "latest.pth"
        temporary = self.directory / ".latest.pth"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(path.name)
        os.replace(temporary, latest)
        if self.args.max_keep_ckpts > 0:
            kept = sorted(self.directory.glob("epoch_*.pth"), key=lambda p: int(p.stem.split("_")[1]))
            for old in kept[: -self.args.max_keep_ckpts]:
                old.unlink()


def main() -> int:
    args = parse_args()
    torch.set_num_threads(args.threads)
    Trainer(args).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
