"""Fine-tuning in the shape of HunyuanDiT's `train_deepspeed.py`: one process, no GPU, half a minute.

It writes what DeepSpeed writes there, straight to the final names:

    <results-dir>/000-<task-flag>/checkpoints/
        0000050.pt/mp_rank_00_model_states.pt                 module, ema, steps, epoch, args, …
        0000050.pt/zero_pp_rank_0_mp_rank_00_optim_states.pt  the optimizer
        latest.pt/…                                           written over and over
        final.pt/…                                            at the end
        latest                                                the tag written last, from which --resume goes on
"""

import argparse
import copy
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from dit import DiT, model_states, noise_for, tokenise
from driving import draw, render
from torch import Tensor

PICTURES = 2048
OPTIMIZER = "zero_pp_rank_0_mp_rank_00_optim_states.pt"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a small text-to-image transformer on driving scenes.")
    parser.add_argument("--results-dir", default="runs")
    parser.add_argument("--task-flag", default="driving")
    parser.add_argument("--max-training-steps", type=int, default=620)
    parser.add_argument("--ckpt-every", type=int, default=50, help="steps between checkpoints that stay")
    parser.add_argument("--ckpt-latest-every", type=int, default=100, help="steps between those that overwrite latest.pt")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--warmup-num-steps", type=int, default=40)
    parser.add_argument("--ema-decay", type=float, default=0.96)
    parser.add_argument("--global-seed", type=int, default=0)
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--resume", type=Path, metavar="DIR", help="experiment directory to go on in")
    return parser.parse_args()


class Data:
    """Scenes and the batch of a step, which depends on the step alone: a resumed run sees what it would have seen."""

    def __init__(self, args: argparse.Namespace) -> None:
        drawn = draw(np.random.default_rng([args.global_seed, 0]), PICTURES)
        self.pictures = torch.from_numpy(render(drawn)).permute(0, 3, 1, 2)
        self.tokens = tokenise(drawn.captions)
        self.left_open = torch.from_numpy(drawn.nuisance)
        self.args = args
        self.steps_per_epoch = PICTURES // args.batch_size

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Clean pictures and noise (b, 3, 64, 64), times (b,), tokens (b, WORDS)."""
        rng = torch.Generator().manual_seed(self.args.global_seed * 1_000_003 + step)
        rows = torch.randint(PICTURES, (self.args.batch_size,), generator=rng)
        # Most of what there is to learn is at the noisy end.
        t = torch.rand(self.args.batch_size, generator=rng) ** 3
        return self.pictures[rows].float() / 127.5 - 1, noise_for(self.left_open[rows], rng), t, self.tokens[rows]


class Engine:
    """Model, moving average and optimizer: the part that DeepSpeed plays."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(args.global_seed)
        self.args = args
        self.module = DiT()
        self.ema = copy.deepcopy(self.module.state_dict())
        self.optimizer = torch.optim.AdamW(
            self.module.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    def step(self, batch: tuple[Tensor, Tensor, Tensor, Tensor], number: int) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.args.lr * min(1.0, number / self.args.warmup_num_steps)
        clean, noise, t, tokens = batch
        share = t[:, None, None, None]
        loss = torch.nn.functional.mse_loss(self.module((1 - share) * noise + share * clean, t, tokens), clean)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            for name, value in self.module.state_dict().items():
                self.ema[name].lerp_(value, 1 - self.args.ema_decay)
        return float(loss.detach())

    def save_checkpoint(self, directory: Path, tag: str, client_state: dict[str, object]) -> None:
        target = directory / tag
        target.mkdir(parents=True, exist_ok=True)
        states = {
            "module": self.module.state_dict(), "global_steps": client_state["steps"], "dp_world_size": 1,
            "mp_world_size": 1, "ds_version": "0.16.4", **client_state,
        }
        torch.save(states, model_states(target))
        torch.save({"optimizer_state_dict": self.optimizer.state_dict()}, target / OPTIMIZER)
        (directory / "latest").write_text(tag)

    def load_checkpoint(self, directory: Path) -> int:
        """Goes on from what `latest` names; returns its step."""
        target = directory / (directory / "latest").read_text().strip()
        with torch.serialization.safe_globals([argparse.Namespace, type(directory)]):
            states = torch.load(model_states(target), map_location="cpu", weights_only=True)
            optimizer = torch.load(target / OPTIMIZER, map_location="cpu", weights_only=True)
        self.module.load_state_dict(states["module"])
        self.ema = states["ema"]
        self.optimizer.load_state_dict(optimizer["optimizer_state_dict"])
        return int(states["steps"])


def experiment_folder(args: argparse.Namespace) -> Path:
    if args.resume is not None:
        return args.resume
    results = Path(args.results_dir)
    results.mkdir(parents=True, exist_ok=True)
    number = sum(1 for path in results.iterdir() if not path.name.startswith("."))
    return results / f"{number:03d}-{args.task_flag}"


def save(engine: Engine, checkpoints: Path, tag: str, steps: int, epoch: int) -> None:
    engine.save_checkpoint(checkpoints, tag, {"steps": steps, "epoch": epoch, "args": engine.args, "ema": engine.ema})
    print(f"Saved checkpoint to {checkpoints / tag}", flush=True)


def main() -> int:
    args = parse_args()
    torch.set_num_threads(args.threads)
    checkpoints = experiment_folder(args) / "checkpoints"
    data, engine = Data(args), Engine(args)
    done = engine.load_checkpoint(checkpoints) if args.resume is not None else 0
    print(f"{checkpoints.parent}: from step {done}", flush=True)
    begin, losses, epoch = time.monotonic(), [], done // data.steps_per_epoch
    for step in range(done + 1, args.max_training_steps + 1):
        epoch = (step - 1) // data.steps_per_epoch
        losses.append(engine.step(data.batch(step), step))
        if not math.isfinite(losses[-1]):
            sys.exit(f"loss is {losses[-1]} at step {step}")
        if step % args.log_every == 0:
            rate = len(losses) / (time.monotonic() - begin)
            print(f"(step={step:07d}) Train Loss: {sum(losses) / len(losses):.4f}, Steps/Sec: {rate:.1f}", flush=True)
            begin, losses = time.monotonic(), []
        if step % args.ckpt_every == 0:
            save(engine, checkpoints, f"{step:07d}.pt", step, epoch)
        if step % args.ckpt_latest_every == 0 or step == args.max_training_steps:
            save(engine, checkpoints, "latest.pt", step, epoch)
    save(engine, checkpoints, "final.pt", args.max_training_steps, epoch)
    return 0


if __name__ == "__main__":
    sys.exit(main())
