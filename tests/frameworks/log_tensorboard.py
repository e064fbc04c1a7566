"""Event files of Lightning's TensorBoardLogger and of torch.utils.tensorboard, which are read while they are written."""

from rehearsal import Rehearsal, rehearse  # isort: skip  (sets the environment before the libraries are imported)

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter


class Line(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)
        self.logged = []

    def note(self, name, value):
        self.log(name, value)
        self.logged.append([self.trainer.global_step, self.current_epoch, name, float(value)])

    def training_step(self, batch, _):
        loss = torch.nn.functional.mse_loss(self.layer(batch), batch.sum(1, keepdim=True))
        self.note("train/loss", loss.detach())
        return loss

    def validation_step(self, batch, _):
        self.note("val/abs_rel", torch.nn.functional.l1_loss(self.layer(batch), batch.sum(1, keepdim=True)))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.05)


class Tell(Callback):
    def __init__(self, rehearsal):
        self.rehearsal = rehearsal

    def on_train_epoch_start(self, trainer, module):
        trainer.logger.experiment.flush()
        self.rehearsal.pause()


def with_lightning(rehearsal):
    lightning.seed_everything(0, verbose=False)
    data, module = torch.randn(8, 4), Line()
    keeper = ModelCheckpoint(dirpath=rehearsal.out / "lightning", monitor="val/abs_rel", save_top_k=-1,
                             filename="{epoch}-{step}")
    trainer = lightning.Trainer(
        max_epochs=3, accelerator="cpu", devices=1, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, log_every_n_steps=1, callbacks=[keeper, Tell(rehearsal)],
        logger=TensorBoardLogger(rehearsal.out / "lightning", name="tb"))
    trainer.fit(module, DataLoader(data, batch_size=4), DataLoader(data, batch_size=8))
    trainer.logger.experiment.flush()
    return module.logged


def with_writer(rehearsal):
    """Scalars of each kind between pictures, text and histograms, in two files: the training was started twice."""
    written, rng = [], np.random.default_rng(0)
    for begin in (0, 3):
        writer = SummaryWriter(rehearsal.out / "writer")
        writer.add_hparams({"lr": 1e-3}, {"hparam/rmse": 1.0}, run_name=".")
        for step in range(begin, begin + 4):
            writer.add_text("note", "words " * 100, step)
            writer.add_scalar("loss/total", 1 / (step + 1), step)
            writer.add_image("depth", rng.integers(0, 255, (3, 600, 600), dtype=np.uint8), step)  # noise: about 1 MB as png
            writer.add_scalar("loss/new", step / 8, step, new_style=True)
            writer.add_histogram("weights", rng.normal(size=500), step)
            writer.add_scalar("loss/double", 0.1 * step, step, new_style=True, double_precision=True)
            writer.add_scalars("d", {"d1": 0.5, "d2": 0.0}, step)
            written += [[step, "loss/total", 1 / (step + 1)], [step, "loss/new", step / 8],
                        [step, "loss/double", 0.1 * step]]
            writer.flush()
            rehearsal.pause()
        writer.close()
    return written


def train(rehearsal: Rehearsal):
    return {"writer": with_writer(rehearsal), "lightning": with_lightning(rehearsal)}


if __name__ == "__main__":
    rehearse(train, lambda path: {})
