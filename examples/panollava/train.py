"""Training in the shape of PanoLLaVA's: one process, no GPU, twenty seconds. It knows nothing of ckptwatch.

    runs/<experiment>/siglip_mlp_anyres-e2p_<experiment>_epoch05_loss0.4201.ckpt   each epoch, by validation loss
                      best.ckpt, last.ckpt                                         links
                      checkpoint_metadata.json                                     what was trained, how to evaluate it
                      lora_weights/                                                the adapter of the best checkpoint
"""

import argparse
import json
import os
import time
from pathlib import Path

import torch
from model import Lora, PanoLLaVA, encode, pretrained_language_model
from panoramas import make_split, read_split, views
from safetensors.torch import save_file
from torch import Tensor

HERE = Path(__file__).parent
LORA = Lora()
PREFIX = "siglip_mlp_anyres-e2p"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fine-tune a small vision-language model on panoramas.")
    parser.add_argument("--experiment", default="quic360")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


class Trainer:
    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        torch.set_num_threads(1)
        self.args, self.directory = args, HERE / "runs" / args.experiment
        self.directory.mkdir(parents=True, exist_ok=True)
        self.tables = {split: make_split(HERE / "data", split, count, seed)
                       for split, count, seed in (("train", 1536, 1), ("val", 128, 2), ("test", 64, 3))}
        rows = read_split(self.tables["train"])
        self.seen, self.tokens = views(torch.stack([r.picture for r in rows])), encode([r.response for r in rows])
        held = read_split(self.tables["val"])
        self.held = views(torch.stack([r.picture for r in held])), encode([r.response for r in held])
        self.model = PanoLLaVA(pretrained_language_model(HERE / "networks", [r.response for r in rows]), LORA)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.steps = len(rows) // args.batch_size
        self.optimizer = torch.optim.AdamW(self.trained, lr=args.lr, weight_decay=0.01)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, args.lr, total_steps=args.epochs * self.steps)

    def epoch(self) -> float:
        """Mean training loss."""
        total = 0.0
        for rows in torch.randperm(len(self.seen))[:self.steps * self.args.batch_size].view(self.steps, -1):
            loss = self.model.loss(self.seen[rows], self.tokens[rows])
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
            self.optimizer.step()
            self.schedule.step()
            total += float(loss.detach())
        return total / self.steps

    @torch.no_grad()
    def validate(self) -> float:
        return float(self.model.loss(*self.held))

    def save(self, epoch: int, loss: float, best: bool) -> Path:
        path = self.directory / f"{PREFIX}_{self.args.experiment}_epoch{epoch:02d}_loss{loss:.4f}.ckpt"
        temporary = path.with_name(f".{path.name}.tmp")  # what lies under the name is whole at any time
        torch.save({"state_dict": self.model.trained(), "epoch": epoch, "global_step": (epoch + 1) * self.steps,
                    "hyper_parameters": {"lora": vars(LORA), "stage": "finetune"}}, temporary)
        os.replace(temporary, path)
        if best:
            self.save_adapter(self.model.adapter())
        for name in ("last.ckpt", *(["best.ckpt"] if best else [])):
            link(path.name, self.directory / name)
        return path

    def save_adapter(self, weights: dict[str, Tensor]) -> None:
        """As PEFT lays it out."""
        directory = self.directory / "lora_weights"
        directory.mkdir(exist_ok=True)
        save_file({name: value.contiguous() for name, value in weights.items()}, directory / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": LORA.r, "lora_alpha": LORA.lora_alpha,
                  "target_modules": ["qkv", "proj", "up", "down"]}
        (directory / "adapter_config.json").write_text(json.dumps(config, indent=2))

    def describe(self) -> None:
        """checkpoint_metadata.json, from which `ckptwatch eval` knows everything; paths are relative to it."""
        def from_here(path: Path) -> str:
            return os.path.relpath(path, self.directory)

        content = {
            "experiment_name": self.args.experiment, "stage": "finetune",
            "model_config": {"vision": "siglip", "resampler": "mlp", "crop": "anyres-e2p", "use_lora": True, **vars(LORA)},
            "training_config": {"epochs": self.args.epochs, "batch_size": self.args.batch_size, "lr": self.args.lr,
                                "use_lora": True},
            "dataset": {"train_csv": from_here(self.tables["train"]), "val_csv": from_here(self.tables["val"])},
            "evaluation": {
                "command": ["python", from_here(HERE / "eval.py"), "--ckpt", "{checkpoint}", "--metadata", "{metadata}",
                            ["--lora", "{lora}"], ["--csv-input", "{csv_input}"], ["--max-samples", "{max_samples}"],
                            ["--batch-size", "{batch_size}"]],
                "metrics": ["token_f1", {"name": "exact_match", "mode": "max"}, "val_loss"],
            },
        }
        (self.directory / "checkpoint_metadata.json").write_text(json.dumps(content, indent=2))


def link(target: str, name: Path) -> None:
    """A link that always leads somewhere: the new one takes the old one's place."""
    fresh = name.with_name(f".{name.name}.new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    os.replace(fresh, name)


def main() -> None:
    args = parse_args()
    trainer, lowest = Trainer(args), float("inf")
    trainer.describe()
    for epoch in range(args.epochs):
        begin = time.monotonic()
        trained, loss = trainer.epoch(), trainer.validate()
        path = trainer.save(epoch, loss, best=loss < lowest)
        lowest = min(lowest, loss)
        print(f"epoch {epoch:2d}  train {trained:.4f}  val {loss:.4f}  {time.monotonic() - begin:.1f} s  {path.name}",
              flush=True)


if __name__ == "__main__":
    main()
