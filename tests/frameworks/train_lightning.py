"""Lightning: the two best and a rolling last, a slash in the metric's name, `last` as a link."""

from pathlib import Path

from rehearsal import Rehearsal, rehearse  # isort: skip  (sets the environment before the libraries are imported)

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch.utils.data import DataLoader

ACCURACIES = (0.25, 0.5, 0.375, 0.75)  # of the epochs, as a validation might find them


class Line(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch, _):
        return torch.nn.functional.mse_loss(self.layer(batch), batch.sum(1, keepdim=True))

    def validation_step(self, batch, _):
        self.log("val_loss", torch.nn.functional.mse_loss(self.layer(batch), batch.sum(1, keepdim=True)))
        self.log("val/acc", ACCURACIES[self.current_epoch])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.05)


class Tell(Callback):
    """After the checkpoint callbacks of an epoch have run: what lies there now?"""

    def __init__(self, rehearsal, keeper):
        self.rehearsal, self.keeper = rehearsal, keeper

    def on_train_epoch_start(self, trainer, module):
        self.tell(trainer.current_epoch - 1, trainer)

    def on_fit_end(self, trainer, module):
        self.tell(trainer.current_epoch - 1, trainer)

    def tell(self, epoch, trainer):
        keeper, facts = self.keeper, {"step": trainer.global_step, "epoch": epoch}
        saved = [Path(p) for p in keeper.best_k_models if f"epoch={epoch}-" in p]
        for path in saved:
            metrics = {keeper.monitor: float(keeper.best_k_models[str(path)])}
            self.rehearsal.saved(path, "lightning", **facts, metrics=metrics)
        if epoch >= 0 and keeper.save_last is True:
            self.rehearsal.saved(keeper.last_model_path, "lightning", **facts)
        self.rehearsal.pause()


def run(rehearsal, name, **settings):
    lightning.seed_everything(0, verbose=False)
    keeper = ModelCheckpoint(dirpath=rehearsal.out / name / "checkpoints", **settings)
    data = torch.randn(8, 4)
    trainer = lightning.Trainer(
        max_epochs=len(ACCURACIES), accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=rehearsal.out / name,
        callbacks=[keeper, Tell(rehearsal, keeper)])
    module = Line()
    trainer.fit(module, DataLoader(data, batch_size=4), DataLoader(data, batch_size=8))
    return {"step": trainer.global_step, "val_loss": float(trainer.callback_metrics["val_loss"]),
            "best": str(Path(keeper.best_model_path).relative_to(rehearsal.out)),
            "last": str(Path(keeper.last_model_path).relative_to(rehearsal.out)) if keeper.last_model_path else ""}


def train(rehearsal: Rehearsal):
    return {
        "top": run(rehearsal, "top", monitor="val_loss", save_top_k=2, save_last=True,
                   filename="{epoch}-{step}-{val_loss:.3f}"),
        "slash": run(rehearsal, "slash", monitor="val/acc", mode="max", save_top_k=-1, filename="{epoch}-{val/acc:.3f}"),
        "link": run(rehearsal, "link", monitor="val/acc", mode="max", save_top_k=1, save_last="link"),
    }


def load(path: Path):
    module = Line.load_from_checkpoint(path, map_location="cpu", weights_only=False)
    return dict(module.state_dict())


if __name__ == "__main__":
    rehearse(train, load)
