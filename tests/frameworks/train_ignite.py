"""Ignite: Checkpoint with a score and DiskSaver, which writes beside the target and replaces it."""

from pathlib import Path

from rehearsal import Rehearsal, rehearse  # isort: skip  (sets the environment before the libraries are imported)

import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, DiskSaver

SCORES = (0.25, 0.75, 0.5, 0.625)  # of the epochs, as a validation might find them


def network():
    return torch.nn.Linear(4, 1)


def train(rehearsal: Rehearsal):
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    data = [torch.randn(8, 4) for _ in range(3)]

    def step(engine, batch):
        loss = torch.nn.functional.mse_loss(model(batch), batch.sum(1, keepdim=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    trainer = Engine(step)
    both = {"model": model, "optimizer": optimizer, "trainer": trainer}
    best = Checkpoint(
        {"model": model}, DiskSaver(rehearsal.out / "best"), n_saved=2, filename_prefix="best", score_name="val_acc",
        score_function=lambda engine: SCORES[engine.state.epoch - 1],
        global_step_transform=lambda engine, _: engine.state.epoch)
    rolling = Checkpoint(both, DiskSaver(rehearsal.out / "rolling"), n_saved=1)
    fixed = Checkpoint(both, DiskSaver(rehearsal.out / "fixed"), n_saved=1, filename_pattern="{name}.pt")
    losses = []
    for handler in (best, rolling, fixed):
        trainer.add_event_handler(Events.EPOCH_COMPLETED, handler)

    @trainer.on(Events.EPOCH_COMPLETED)
    def tell(engine):
        epoch, losses[len(losses):] = engine.state.epoch, [engine.state.output]
        if (kept := rehearsal.out / "best" / f"best_model_{epoch}_val_acc={SCORES[epoch - 1]:.4f}.pt").exists():
            # Of a single object Ignite writes the bare state dict, which nothing tells from any other torch file.
            rehearsal.saved(kept, "torch-zip", metrics={"val_acc": SCORES[epoch - 1]})
        rehearsal.saved(rehearsal.out / "rolling" / rolling.last_checkpoint, "ignite", step=engine.state.iteration)
        rehearsal.saved(rehearsal.out / "fixed" / "checkpoint.pt", "ignite", step=engine.state.iteration)
        rehearsal.pause()

    trainer.run(data, max_epochs=len(SCORES))
    return {"losses": losses, "last": Path(best.last_checkpoint).name}


def load(path: Path):
    model = network()
    state = torch.load(path, weights_only=True)
    if "optimizer" in state:
        Checkpoint.load_objects({"model": model, "optimizer": torch.optim.Adam(model.parameters())}, state)
    else:
        Checkpoint.load_objects({"model": model}, state)
    return dict(model.state_dict())


if __name__ == "__main__":
    rehearse(train, load)
