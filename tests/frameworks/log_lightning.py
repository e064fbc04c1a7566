"""Lightning logs: CSVLogger, with values of steps, of epochs, and one that comes late.

    python log_lightning.py OUT_DIR

The last line of standard output tells what was logged: [step, loss] and [epoch, accuracy], and the checkpoints.
"""

import json
import sys
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

ACCURACIES = (0.25, 0.5, 0.375)


class Line(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)
        self.losses = []

    def training_step(self, batch, _):
        loss = torch.nn.functional.mse_loss(self.layer(batch), batch.sum(1, keepdim=True))
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        if self.current_epoch:
            self.log("late", 7.0)
        self.losses.append([self.global_step, self.current_epoch, loss.item()])
        return loss

    def validation_step(self, batch, _):
        self.log("val/acc", ACCURACIES[self.current_epoch])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def main(out):
    lightning.seed_everything(0, verbose=False)
    logger = CSVLogger(out, name="lightning_logs", flush_logs_every_n_steps=2)
    keeper = ModelCheckpoint(save_top_k=-1, filename="{epoch}-{step}")
    data, module = torch.randn(16, 4), Line()
    lightning.Trainer(max_epochs=len(ACCURACIES), accelerator="cpu", devices=1, logger=logger, log_every_n_steps=1,
                      enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=out,
                      callbacks=[keeper]).fit(module, DataLoader(data, batch_size=4), DataLoader(data, batch_size=8))
    checkpoints = sorted(str(path.relative_to(out)) for path in Path(out).rglob("*.ckpt"))
    print(json.dumps({"losses": module.losses, "checkpoints": checkpoints}))


if __name__ == "__main__":
    main(sys.argv[1])
