"""mmengine logs: a Runner with its LoggerHook, by epochs and by iterations, each with a validation.

    python log_mmengine.py OUT_DIR (epochs|iterations)

The last line of standard output tells what was trained: [iteration, epoch, loss of keypoints] and [iteration, epoch, AP].
"""

import json
import sys

import torch
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner


class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def forward(self, inputs, mode="tensor"):
        predicted = self.layer(inputs)
        if mode == "loss":
            error = torch.nn.functional.mse_loss(predicted, inputs.sum(1, keepdim=True))
            return {"loss_kpt": error, "loss_reg": predicted.square().mean()}
        return [predicted.mean()]


class AveragePrecision(BaseMetric):
    default_prefix = "coco"

    def process(self, data_batch, data_samples):
        self.results.append(float(data_samples[0]))

    def compute_metrics(self, results):
        return {"AP": abs(sum(results)) / 100}


class Tell(Hook):
    def __init__(self):
        self.trained, self.validated = [], []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.trained.append([runner.iter + 1, runner.epoch + 1, outputs["loss_kpt"].item()])

    def after_val_epoch(self, runner, metrics=None):
        self.validated.append([runner.iter, runner.epoch, metrics["coco/AP"]])


def loader(batches):
    inputs = [torch.full((4,), float(i % 5)) + torch.arange(4.0) for i in range(4 * batches)]
    return {"dataset": [{"inputs": x} for x in inputs], "sampler": {"type": "DefaultSampler", "shuffle": False},
            "batch_size": 4, "num_workers": 0, "collate_fn": {"type": "default_collate"}}


def main(out, by_epoch):
    tell = Tell()
    if by_epoch:
        train_cfg = {"by_epoch": True, "max_epochs": 3, "val_interval": 1}
    else:
        train_cfg = {"by_epoch": False, "max_iters": 15, "val_interval": 5}
    hook = {"type": "LoggerHook", "interval": 2, "ignore_last": True}
    Runner(model=Model(), work_dir=out, train_dataloader=loader(5), val_dataloader=loader(2), val_cfg={},
           train_cfg=train_cfg, val_evaluator=Evaluator(AveragePrecision()), randomness={"seed": 0},
           optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.01}},
           log_processor={"window_size": 1, "by_epoch": by_epoch, "num_digits": 6},
           default_hooks={"logger": {**hook, "log_metric_by_epoch": by_epoch},
                          "checkpoint": {"type": "CheckpointHook", "interval": 1 if by_epoch else 5, "by_epoch": by_epoch}},
           custom_hooks=[tell], experiment_name="logs").train()
    print(json.dumps({"trained": tell.trained, "validated": tell.validated}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] == "epochs")
