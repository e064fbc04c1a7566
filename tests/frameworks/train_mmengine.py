"""mmengine: Runner with a CheckpointHook that keeps two epochs and the best, which rewrites a complete file."""

from pathlib import Path

from rehearsal import Rehearsal, rehearse  # isort: skip  (sets the environment before the libraries are imported)

import torch
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import CheckpointHook, Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner, load_state_dict, set_random_seed

APS = (0.25, 0.5, 0.375, 0.75)  # of the epochs, as a validation might find them


class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def forward(self, inputs, mode="tensor"):
        predicted = self.layer(inputs)
        if mode == "loss":
            return {"loss": torch.nn.functional.mse_loss(predicted, inputs.sum(1, keepdim=True))}
        return [predicted.mean()]


class AveragePrecision(BaseMetric):
    default_prefix = "coco"

    def __init__(self):
        super().__init__()
        self.epoch = 0

    def process(self, data_batch, data_samples):
        self.results.append(1)

    def compute_metrics(self, results):
        self.epoch += 1
        return {"AP": APS[self.epoch - 1]}


class Tell(Hook):
    priority = "LOWEST"

    def __init__(self, rehearsal):
        self.rehearsal = rehearsal

    def tell(self, runner, epoch):
        out = Path(runner.work_dir)
        self.rehearsal.saved(out / f"epoch_{epoch}.pth", "mmengine", step=2 * epoch, epoch=epoch)
        for best in out.glob(f"best_*_epoch_{epoch}.pth"):
            self.rehearsal.saved(best, "mmengine", step=2 * epoch, epoch=epoch)
        self.rehearsal.pause()

    def before_train_epoch(self, runner):
        if runner.epoch > 0:
            self.tell(runner, runner.epoch)

    def after_train(self, runner):
        self.tell(runner, runner.epoch)


def loader(batches):
    inputs = [torch.full((4,), float(i % 5)) + torch.arange(4.0) for i in range(4 * batches)]
    return {"dataset": [{"inputs": x} for x in inputs], "sampler": {"type": "DefaultSampler", "shuffle": False},
            "batch_size": 4, "num_workers": 0, "collate_fn": {"type": "default_collate"}}


def train(rehearsal: Rehearsal):
    set_random_seed(0)
    out = rehearsal.out / "mmengine"
    losses = []
    keeper = CheckpointHook(interval=1, by_epoch=True, save_best="coco/AP", rule="greater", max_keep_ckpts=2)
    runner = Runner(
        model=Model(), work_dir=str(out), train_dataloader=loader(2), val_dataloader=loader(1), val_cfg={},
        train_cfg={"by_epoch": True, "max_epochs": len(APS), "val_interval": 1}, val_evaluator=Evaluator(AveragePrecision()),
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.01}}, log_level="ERROR", randomness={"seed": 0},
        default_hooks={"checkpoint": keeper}, custom_hooks=[Tell(rehearsal), Losses(losses)], experiment_name="rehearsal")
    runner.train()
    return {"losses": losses, "last": (out / "last_checkpoint").read_text().rpartition("/")[2]}


class Losses(Hook):
    def __init__(self, losses):
        self.losses = losses

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append(outputs["loss"].item())


def load(path: Path):
    model = Model()
    load_state_dict(model, torch.load(path, weights_only=False)["state_dict"], strict=True)
    return dict(model.state_dict())


if __name__ == "__main__":
    rehearse(train, load)
