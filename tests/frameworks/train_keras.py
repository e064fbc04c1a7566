"""Keras: ModelCheckpoint with the whole model, with weights only, and a rolling best."""

from pathlib import Path

from rehearsal import Rehearsal, rehearse  # isort: skip  (sets the environment before the libraries are imported)

import keras
import numpy


class Tell(keras.callbacks.Callback):
    """Stands after the checkpoint callbacks, so theirs are written."""

    def __init__(self, rehearsal):
        super().__init__()
        self.rehearsal, self.best = rehearsal, float("inf")

    def on_epoch_end(self, epoch, logs=None):
        out, loss = self.rehearsal.out, logs["val_loss"]
        self.rehearsal.saved(out / "whole" / f"{epoch + 1:02d}-{loss:.2f}.keras", "keras", epoch=epoch + 1)
        self.rehearsal.saved(out / "weights" / f"epoch-{epoch + 1:03d}.weights.h5", "keras", epoch=epoch + 1)
        if loss < self.best:
            self.best = loss
            self.rehearsal.saved(out / "best" / "best.keras", "keras")
        self.rehearsal.pause()


def network():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="first"), keras.layers.Dense(1, name="second")])
    model.compile(optimizer=keras.optimizers.Adam(0.05), loss="mse")
    return model


def train(rehearsal: Rehearsal):
    keras.utils.set_random_seed(0)
    out = rehearsal.out
    data = numpy.random.default_rng(0).normal(size=(32, 4)).astype("float32")
    keep = [
        keras.callbacks.ModelCheckpoint(out / "whole" / "{epoch:02d}-{val_loss:.2f}.keras", monitor="val_loss"),
        keras.callbacks.ModelCheckpoint(out / "weights" / "epoch-{epoch:03d}.weights.h5", save_weights_only=True),
        keras.callbacks.ModelCheckpoint(out / "best" / "best.keras", monitor="val_loss", save_best_only=True),
    ]
    model = network()
    history = model.fit(data[:24], data[:24].sum(1), validation_data=(data[24:], data[24:].sum(1)), epochs=4, batch_size=8,
                        verbose=0, callbacks=[*keep, Tell(rehearsal)])
    return {name: [round(v, 5) for v in values] for name, values in history.history.items()}


def load(path: Path):
    if path.name.endswith(".h5"):
        model = network()
        model.load_weights(path)
    else:
        model = keras.saving.load_model(path)
    return {f"{i}": v for i, v in enumerate(model.get_weights())}


if __name__ == "__main__":
    rehearse(train, load)
