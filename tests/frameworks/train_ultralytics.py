"""ultralytics: a detector of a few channels on a dataset of four drawn pictures, with `save_period`."""

from pathlib import Path

from rehearsal import Rehearsal, rehearse  # isort: skip  (sets the environment before the libraries are imported)

import numpy
import yaml
from PIL import Image
from ultralytics import YOLO
from ultralytics.utils import SETTINGS

SETTINGS.update({name: False for name in SETTINGS if name not in ("settings_version",) and isinstance(SETTINGS[name], bool)})

NETWORK = {"nc": 1, "backbone": [[-1, 1, "Conv", [8, 3, 4]], [-1, 1, "Conv", [8, 3, 2]]],
           "head": [[[1], 1, "Detect", ["nc"]]]}


def train(rehearsal: Rehearsal):
    made = rehearsal.out.parent / f"{rehearsal.out.name}-data"
    dataset(made)
    model = YOLO(str(made / "tiny.yaml"), task="detect")
    tell = Tell(rehearsal)
    for event in ("on_model_save", "on_train_end"):
        model.add_callback(event, getattr(tell, event))
    results = model.train(
        data=str(made / "data.yaml"), epochs=3, imgsz=32, batch=2, workers=0, device="cpu", project=str(rehearsal.out),
        name="train", save_period=1, plots=False, amp=False, verbose=False, seed=0, deterministic=True, optimizer="SGD",
        lr0=0.01, warmup_epochs=0, mosaic=0.0, close_mosaic=0)
    return {"fitness": float(results.fitness), "losses": tell.losses}


class Tell:
    def __init__(self, rehearsal):
        self.rehearsal, self.losses = rehearsal, []

    def on_model_save(self, trainer):
        weights, epoch = Path(trainer.wdir), trainer.epoch
        facts = {"epoch": epoch, "metrics": {"fitness": trainer.fitness, "val/box_loss": trainer.metrics["val/box_loss"]}}
        self.losses.append([float(v) for v in trainer.tloss.values()])
        self.rehearsal.saved(weights / "last.pt", "ultralytics", **facts)
        if trainer.best_fitness == trainer.fitness:
            self.rehearsal.saved(weights / "best.pt", "ultralytics", **facts)
        if (weights / f"epoch{epoch}.pt").exists():
            self.rehearsal.saved(weights / f"epoch{epoch}.pt", "ultralytics", **facts)
        self.rehearsal.pause()

    def on_train_end(self, trainer):
        """Both have been rewritten without the optimizer."""
        for name in ("last.pt", "best.pt"):
            self.rehearsal.saved(Path(trainer.wdir) / name, "ultralytics", step=None, epoch=None)


def dataset(out):
    chance = numpy.random.default_rng(0)
    for part in ("train", "val"):
        for kind in ("images", "labels"):
            (out / kind / part).mkdir(parents=True)
        for i in range(2):
            picture = chance.integers(0, 50, (32, 32, 3), dtype="uint8")
            picture[8:24, 8:24] = 255
            Image.fromarray(picture).save(out / "images" / part / f"{i}.png")
            (out / "labels" / part / f"{i}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (out / "data.yaml").write_text(yaml.safe_dump(
        {"path": str(out), "train": "images/train", "val": "images/val", "names": {0: "square"}}))
    (out / "tiny.yaml").write_text(yaml.safe_dump(NETWORK))


def load(path: Path):
    weights = YOLO(str(path)).model.state_dict()
    assert weights
    return {k: v.float() for k, v in weights.items()}


if __name__ == "__main__":
    rehearse(train, load)
