"""Orbax: CheckpointManager with metrics and the two best kept, saved in the background."""

from pathlib import Path

from rehearsal import Rehearsal, rehearse  # isort: skip  (sets the environment before the libraries are imported)

import jax
import numpy
import orbax.checkpoint as ocp

ACCURACIES = (0.25, 0.75, 0.5, 0.625)


def train(rehearsal: Rehearsal):
    out = rehearsal.out / "orbax"
    options = ocp.CheckpointManagerOptions(
        max_to_keep=2, best_fn=lambda metrics: metrics["accuracy"], best_mode="max", enable_async_checkpointing=True)
    update = jax.jit(lambda state, x: {"params": {k: v - 0.1 * x.mean() for k, v in state["params"].items()},
                                       "step": state["step"] + 1})
    state = {"params": {"w": jax.numpy.arange(64.0).reshape(8, 8), "b": jax.numpy.zeros(8)}, "step": 0}
    data = numpy.random.default_rng(0)
    with ocp.CheckpointManager(out, options=options) as manager:
        for step, accuracy in enumerate(ACCURACIES, 1):
            state = update(state, data.normal(size=4))
            manager.save(10 * step, args=ocp.args.StandardSave(state), metrics={"accuracy": accuracy})
            manager.wait_until_finished()
            rehearsal.saved(out / str(10 * step), "orbax", step=10 * step, metrics={"accuracy": accuracy})
            rehearsal.pause()
        ended = {"steps": sorted(manager.all_steps()), "best": manager.best_step(), "latest": manager.latest_step(),
                 "weights": float(state["params"]["w"].sum())}
    return ended


def load(path: Path):
    with ocp.CheckpointManager(path.parent) as manager:
        state = manager.restore(int(path.name), args=ocp.args.StandardRestore())
    return {**state["params"], "step": numpy.asarray(state["step"])}


if __name__ == "__main__":
    rehearse(train, load)
