"""timm.utils.CheckpointSaver: `last` renamed into place; the ranked ones, the best and the milestones are hard links."""

from pathlib import Path

from rehearsal import Rehearsal, rehearse  # isort: skip  (sets the environment before the libraries are imported)

import torch
from timm.models import load_checkpoint
from timm.utils import CheckpointSaver, ModelEmaV3

METRICS = (10.0, 40.0, 30.0, 20.0, 15.0, 50.0)  # top-1 of the epochs, as a validation might find it


def network():
    return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1))


def train(rehearsal: Rehearsal):
    torch.manual_seed(0)
    out = rehearsal.out / "timm"
    out.mkdir()
    model = network()
    ema = ModelEmaV3(model, decay=0.9)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    saver = CheckpointSaver(model, optimizer, model_ema=ema, checkpoint_dir=str(out), recovery_dir=str(out), max_history=2)
    losses = []
    for epoch, metric in enumerate(METRICS):
        for batch in range(2):
            loss = torch.nn.functional.mse_loss(model(torch.randn(8, 4)), torch.ones(8, 1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            ema.update(model)
            losses.append(loss.item())
            if batch == 0:
                saver.save_recovery(epoch, batch_idx=batch)
                rehearsal.saved(out / f"recovery-{epoch}-{batch}.pth.tar", "timm", epoch=epoch)
                rehearsal.pause()
        best, best_epoch = saver.save_checkpoint(epoch, metric)
        if epoch == 3:
            saver.save_milestone(epoch + 1)
            rehearsal.saved(out / "milestone-4.pth.tar", "timm", metrics={"metric": metric})  # counts epochs from one
        if (kept := out / f"checkpoint-{epoch}.pth.tar").exists():
            rehearsal.saved(kept, "timm", epoch=epoch, metrics={"metric": metric})
        if epoch == 4:  # neither among the best nor a milestone: only `last` holds it
            rehearsal.saved(out / "last.pth.tar", "timm", epoch=epoch, metrics={"metric": metric})
        if epoch == 5:
            rehearsal.forget(out / "last.pth.tar")
        rehearsal.pause()
    return {"losses": losses, "best": best, "best_epoch": best_epoch}


def load(path: Path):
    arrays = {}
    for use_ema in (False, True):
        model = network()
        load_checkpoint(model, str(path), use_ema=use_ema, strict=True, weights_only=True)
        arrays |= {f"{'ema' if use_ema else 'model'}.{k}": v for k, v in model.state_dict().items()}
    return arrays


if __name__ == "__main__":
    rehearse(train, load)
