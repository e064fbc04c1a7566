"""Training in the shape of a SAN trainer: one process, no GPU, a quarter of a minute.

With Horovod every process trains and rank 0 alone writes; this one process writes what rank 0 would:

    <out>/model_epoch_00.pth …   after each epoch, with the keys epoch, model, optimizer
    <out>/train.log              every few steps: the losses, term by term
    <out>/metrics.jsonl          after each epoch: what validation returned, and no loss is among it
    <out>/tb/events.out.…        the losses once more, for TensorBoard

Epochs count from 0.
"""

import argparse
import json
import logging
import sys
from pathlib import Path

import torch
from network import DepthNet, depth_metrics, roughness, silog
from scenes import scenes
from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger("train")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser("SAN", description="Train a small depth network with a sparse auxiliary branch.")
    parser.add_argument("--out", default="runs/depth")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--scenes", type=int, default=192, help="for training")
    parser.add_argument("--validation", type=int, default=48, help="scenes for validation")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--log-every", type=int, default=8, help="steps")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


class Trainer:
    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        self.args, self.out, self.step = args, Path(args.out), 0
        self.training, self.validation = scenes(1, args.scenes), scenes(2, args.validation)
        self.model = DepthNet()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=args.lr)
        self.board = SummaryWriter(self.out / "tb")

    def train_one_epoch(self, epoch: int) -> None:
        size = self.args.batch_size
        order = torch.randperm(self.args.scenes, generator=torch.Generator().manual_seed(self.args.seed + epoch))
        for rows in order.split(size):
            picture, depth, sparse = (part[rows] for part in self.training)
            alone, joint = self.model(picture), self.model(picture, sparse)
            losses = {"loss_silog": silog(alone, depth), "loss_silog_rgbd": silog(joint, depth),
                      "loss_smooth": 0.01 * roughness(alone, picture)}
            loss = sum(losses.values())
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.step += 1
            if self.step % self.args.log_every == 0:
                losses = {"train_loss": loss, **losses}
                self.log_losses(epoch, {name: float(value.detach()) for name, value in losses.items()})

    def log_losses(self, epoch: int, losses: dict[str, float]) -> None:
        told = " | ".join(f"{name}: {value:.5f}" for name, value in losses.items())
        log.info("epoch: %d | step: %d | %s | lr: %.2e", epoch, self.step, told, self.args.lr)
        for tag, value in {**losses, "epoch": float(epoch)}.items():
            self.board.add_scalar(tag, value, self.step)

    @torch.no_grad()
    def validate(self, epoch: int) -> None:
        picture, depth, sparse = self.validation
        self.model.eval()
        metrics = depth_metrics(self.model(picture), depth)
        metrics["abs_rel_rgbd"] = depth_metrics(self.model(picture, sparse), depth)["abs_rel"]
        self.model.train()
        with (self.out / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"epoch": epoch, "step": self.step, **metrics}) + "\n")
        log.info("epoch %d ended, abs_rel %.4f", epoch, metrics["abs_rel"])

    def save(self, epoch: int) -> None:
        self.board.flush()
        torch.save({"epoch": epoch, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()},
                   self.out / f"model_epoch_{epoch:02d}.pth")


def main() -> int:
    args = parse_args()
    torch.set_num_threads(args.threads)
    Path(args.out).mkdir(parents=True, exist_ok=True)
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s] %(message)s", handlers=[
        logging.FileHandler(Path(args.out) / "train.log"), logging.StreamHandler(sys.stdout)])
    trainer = Trainer(args)
    for epoch in range(args.epochs):
        trainer.train_one_epoch(epoch)
        trainer.validate(epoch)
        trainer.save(epoch)
    trainer.board.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
