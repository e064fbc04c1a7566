"""Families that are known by what is in their torch files, with files that the real libraries wrote."""

import argparse
import logging
import os
import shutil
import tempfile
import types
import warnings
from functools import cache
from pathlib import Path

import PIL.Image
import pytest
import torch

from ckptwatch.formats.base import claim_at, claims_below, examine, format_named, formats, list_folder
from ckptwatch.formats.fvcore import Fvcore
from ckptwatch.formats.ignite import Ignite
from ckptwatch.formats.lightning import Lightning
from ckptwatch.formats.mmengine import MMEngine
from ckptwatch.formats.timm_files import Timm
from ckptwatch.formats.ultralytics import Ultralytics
from ckptwatch.testing import FormatConformance

WRITTEN = tempfile.TemporaryDirectory()  # each library trains once


def place_of(library):
    place = Path(WRITTEN.name, library)
    place.mkdir()
    return place


def facts_at(path):
    claim = claim_at(path)
    return examine(claim, format_named(claim.format))


class OneFile(FormatConformance):
    """One of the files that `source()` has written."""

    mutations = 100

    def source(self):
        raise NotImplementedError

    def write(self, directory):
        return Path(shutil.copy2(self.source(), directory))


# ---- Lightning -------------------------------------------------------------------------------------------------------


@cache
def lightning_run():
    place = place_of("lightning")
    lightning = pytest.importorskip("lightning")
    callbacks = pytest.importorskip("lightning.pytorch.callbacks")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def training_step(self, batch, _index):
            return self.layer(batch).mean()

        def validation_step(self, batch, _index):
            self.log("val_loss", self.layer(batch).mean())

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters())

    batches = torch.utils.data.DataLoader(torch.ones(4, 2), batch_size=2)
    keeper = callbacks.ModelCheckpoint(
        place, monitor="val_loss", save_top_k=-1, filename="{epoch}", save_last=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False,
                                    enable_model_summary=False, callbacks=[keeper])
        trainer.fit(Module(), batches, batches)
    return place, {Path(k).name: float(v) for k, v in keeper.best_k_models.items()}


class TestLightning(OneFile):
    def make_format(self):
        return Lightning()

    def source(self):
        return lightning_run()[0] / "epoch=1.ckpt"


def test_a_lightning_file_tells_its_own_score_and_not_that_of_another_file():
    folder, scores = lightning_run()
    assert len(set(scores.values())) == 2
    for name, score in scores.items():
        facts = facts_at(folder / name)
        assert facts.metrics == {"val_loss": score}
        assert facts.variants == ("state_dict",)
    last = facts_at(folder / "last.ckpt")
    assert (last.step, last.epoch, last.metrics) == (4, 1, {})


@pytest.mark.parametrize("callbacks", [
    None, [], {"a": None}, {"a": {"best_k_models": 5, "monitor": "x"}}, {"a": {"best_k_models": {5: 1.0}, "monitor": "x"}},
    {"a": {"best_k_models": {"/x/a.ckpt": 1.0}, "monitor": ["x"]}},
    {"a": {"best_k_models": {"/x/a.ckpt": "y"}, "monitor": "x"}},
])
def test_odd_callbacks_cost_only_the_score(tmp_path, callbacks):
    torch.save({"pytorch-lightning_version": "2", "global_step": 5, "callbacks": callbacks}, tmp_path / "a.ckpt")
    facts = facts_at(tmp_path / "a.ckpt")
    assert facts.format == "lightning" and facts.step == 5 and facts.metrics == {}


def test_scores_of_files_in_directories_made_by_a_slash_are_not_mixed_up(tmp_path):
    content = {"pytorch-lightning_version": "2", "callbacks": {"a": {"monitor": "val/acc", "best_k_models": {
        "/x/epoch=1-val/acc=0.50.ckpt": 0.501, "/x/epoch=2-val/acc=0.50.ckpt": 0.504}}}}
    for epoch, score in ((1, 0.501), (2, 0.504)):
        path = tmp_path / f"epoch={epoch}-val" / "acc=0.50.ckpt"
        path.parent.mkdir()
        torch.save(content, path)
        claim = claim_at(path)
        assert format_named(claim.format).examine(claim).metrics == {"val/acc": score}


# ---- mmengine --------------------------------------------------------------------------------------------------------


@cache
def mmengine_run():
    place = place_of("mmengine")
    pytest.importorskip("mmengine")
    from mmengine.evaluator import BaseMetric
    from mmengine.model import BaseModel
    from mmengine.runner import Runner

    class Model(BaseModel):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def forward(self, x, mode="tensor"):
            return {"loss": self.layer(x).mean()} if mode == "loss" else [self.layer(x)]

    class Score(BaseMetric):
        scores = iter((0.25, 0.125))

        def process(self, data_batch, data_samples):
            self.results.append(1.0)

        def compute_metrics(self, results):
            return {"acc": next(self.scores)}

    batches = torch.utils.data.DataLoader([{"x": torch.ones(2)} for _ in range(4)], 2)
    Runner(
        Model(), str(place), train_dataloader=batches, val_dataloader=batches,
        val_evaluator=[Score(prefix="val")],
        val_cfg={}, train_cfg={"by_epoch": True, "max_epochs": 2, "val_interval": 1}, log_level="ERROR",
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.1}}, custom_hooks=[{"type": "EMAHook"}],
        default_hooks={"checkpoint": {"type": "CheckpointHook", "interval": 1, "save_best": "val/acc", "rule": "greater"}},
    ).train()
    return place


class TestMMEngine(OneFile):
    def make_format(self):
        return MMEngine()

    def source(self):
        return mmengine_run() / "epoch_2.pth"


def test_a_best_file_of_mmengine_tells_its_score_and_others_do_not_repeat_it():
    facts = {p.name: facts_at(p) for p in mmengine_run().glob("*.pth")}
    assert facts["best_val_acc_epoch_1.pth"].metrics == {"val_acc": 0.25}
    assert facts["epoch_1.pth"].metrics == facts["epoch_2.pth"].metrics == {}
    assert (facts["epoch_2.pth"].epoch, facts["epoch_2.pth"].step) == (2, 4)
    assert facts["epoch_2.pth"].variants == ("state_dict", "ema_state_dict")


def needed(folder):
    return [p.name for f in formats() for p, _ in f.needed(list_folder(folder))]


def test_what_last_checkpoint_names_is_needed(tmp_path):
    assert needed(mmengine_run()) == ["epoch_2.pth"]
    (tmp_path / "model_0004999.pth").write_bytes(b"")
    there = ["model_0004999.pth"]
    for text, expected in (("model_0004999.pth", there), ("/elsewhere/model_0004999.pth\n", there), ("model_final.pth", []),
                           ("", []), ("../x", []), ("x" * 5000, [])):
        (tmp_path / "last_checkpoint").write_text(text)
        assert needed(tmp_path) == expected
    (tmp_path / "last_checkpoint").write_bytes(b"\xff\xfe")
    assert needed(tmp_path) == []


# ---- timm ------------------------------------------------------------------------------------------------------------


@cache
def timm_run():
    place = place_of("timm")
    timm = pytest.importorskip("timm.utils")
    model = torch.nn.Linear(2, 1)
    saver = timm.CheckpointSaver(
        model, torch.optim.SGD(model.parameters(), 0.1), args=argparse.Namespace(model="resnet50"),
        model_ema=timm.ModelEmaV3(model), checkpoint_dir=str(place), recovery_dir=str(place),
        max_history=2)
    for epoch in range(2):
        saver.save_checkpoint(epoch, 0.5 + epoch / 4)
    saver.save_recovery(2, 7)
    return place


class TestTimm(OneFile):
    def make_format(self):
        return Timm()

    def source(self):
        return timm_run() / "checkpoint-1.pth.tar"


def test_timm_tells_epoch_metric_and_both_sets_of_weights():
    facts = facts_at(timm_run() / "last.pth.tar")
    assert (facts.format, facts.epoch, facts.metrics) == ("timm", 1, {"metric": 0.75})
    assert facts.variants == ("state_dict", "state_dict_ema")
    assert facts_at(timm_run() / "recovery-2-7.pth.tar").complete


def test_old_timm_files_counted_epochs_one_further(tmp_path):
    torch.save({"arch": "x", "version": 1, "epoch": 8, "state_dict": {}}, tmp_path / "x.pth.tar")
    assert facts_at(tmp_path / "x.pth.tar").epoch == 7


# ---- Ignite ----------------------------------------------------------------------------------------------------------


@cache
def ignite_run():
    place = place_of("ignite")
    engines, handlers = pytest.importorskip("ignite.engine"), pytest.importorskip("ignite.handlers")
    model = torch.nn.Linear(2, 1)
    engine = engines.Engine(lambda _engine, _batch: 0.5)
    engine.add_event_handler(engines.Events.EPOCH_COMPLETED, handlers.Checkpoint(
        {"model": model, "trainer": engine}, handlers.DiskSaver(str(place)), n_saved=2, score_name="acc",
        score_function=lambda e: e.state.epoch / 8, global_step_transform=lambda e, _: e.state.iteration))
    engine.run(range(5), max_epochs=3)
    return place


class TestIgnite(OneFile):
    def make_format(self):
        return Ignite()

    def source(self):
        return ignite_run() / "checkpoint_15_acc=0.3750.pt"


def test_ignite_tells_iteration_and_completed_epochs_and_needs_its_files(tmp_path):
    path = Path(shutil.copy(ignite_run() / "checkpoint_15_acc=0.3750.pt", tmp_path / "renamed.pt"))
    facts = facts_at(path)
    assert (facts.format, facts.step, facts.epoch, facts.variants) == ("ignite", 15, 3, ("model",))
    assert format_named("ignite").about.needed_while_training


# ---- ultralytics -----------------------------------------------------------------------------------------------------


@cache
def ultralytics_run():
    """By ultralytics' own functions, with a small layer in place of a detector."""
    place = place_of("ultralytics")
    os.environ.setdefault("YOLO_CONFIG_DIR", str(place / "config"))
    os.environ.setdefault("YOLO_OFFLINE", "true")
    ours = PIL.Image.open, torch.load, torch.save
    trainer = pytest.importorskip("ultralytics.engine.trainer")
    tools = pytest.importorskip("ultralytics.utils.torch_utils")
    PIL.Image.open, torch.load, torch.save = ours  # it puts its own in their place, for every other test as well
    model = torch.nn.Linear(2, 1)
    weights = place / "weights"
    weights.mkdir()
    state = types.SimpleNamespace(
        ema=tools.ModelEMA(model), model=model, epoch=3, best_fitness=0.5, fitness=0.5, wdir=weights, save_period=1,
        stopper=types.SimpleNamespace(best_fitness=0.5, best_epoch=3), optimizer=torch.optim.SGD(model.parameters(), 0.1),
        scaler=torch.amp.GradScaler("cpu", enabled=False), args=types.SimpleNamespace(data="x"),
        metrics={"metrics/mAP50(B)": 0.25}, read_results_csv=lambda: {"epoch": [1]}, last=weights / "last.pt",
        best=weights / "best.pt")
    trainer.BaseTrainer.save_model(state)
    tools.strip_optimizer(weights / "best.pt")
    return weights


class TestUltralytics(OneFile):
    def make_format(self):
        return Ultralytics()

    def source(self):
        return ultralytics_run() / "epoch3.pt"


class TestUltralyticsAfterTraining(TestUltralytics):
    def source(self):
        return ultralytics_run() / "best.pt"


def test_ultralytics_keeps_the_model_elsewhere_after_training():
    during, after = facts_at(ultralytics_run() / "last.pt"), facts_at(ultralytics_run() / "best.pt")
    assert (during.epoch, during.variants) == (3, ("ema",))
    assert (after.epoch, after.variants) == (None, ("model",))
    assert during.metrics == after.metrics == {"metrics/mAP50(B)": 0.25, "fitness": 0.5}


# ---- fvcore ----------------------------------------------------------------------------------------------------------


class TestFvcore(FormatConformance):
    """fvcore cannot be installed here; its Checkpointer is one torch.save of such a dict."""

    def make_format(self):
        return Fvcore()

    def write(self, directory):
        torch.save({"model": {"w": torch.zeros(3)}, "optimizer": {}, "scheduler": {"last_epoch": 1}, "iteration": 4999},
                   directory / "model_0004999.pth")
        return directory / "model_0004999.pth"


# ---- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [
    {"pytorch-lightning_version": 5}, {"meta": {"mmengine_version": "1"}}, {"meta": {}, "state_dict": {}},
    {"epoch": 5, "arch": "resnet50", "state_dict": {}, "best_acc1": 0.5, "optimizer": {}},  # the ImageNet example of PyTorch
    {"trainer": {"iteration": 5}}, {"train_args": {}, "model": None}, {"model": {"w": torch.zeros(1)}, "iteration": 5},
    {}, [],
])
def test_what_only_resembles_a_family_is_a_plain_file(tmp_path, content):
    torch.save(content, tmp_path / "x.pt")
    facts = facts_at(tmp_path / "x.pt")
    assert facts.complete and facts.format == "torch-zip"


@pytest.mark.parametrize("new", [True, False])
def test_a_family_is_known_in_files_of_both_kinds(tmp_path, new):
    torch.save({"pytorch-lightning_version": "2", "global_step": 5}, tmp_path / "x.pt", _use_new_zipfile_serialization=new)
    assert facts_at(tmp_path / "x.pt").format == "lightning"


def test_every_directory_the_libraries_wrote_holds_only_complete_checkpoints():
    for folder in (lightning_run()[0], mmengine_run(), timm_run(), ignite_run(), ultralytics_run()):
        claims = list(claims_below(folder))
        assert claims
        for claim in claims:
            assert examine(claim, format_named(claim.format)).complete


def test_what_lightning_calls_its_best_is_needed():
    place, scores = lightning_run()
    best = min(scores, key=scores.__getitem__)
    needed = dict(Lightning().needed(list_folder(place)))
    assert set(needed) == {place / best} and "ckpt_path" in needed[place / best]


def test_files_of_others_name_no_best_of_lightning(tmp_path):
    torch.save({"w": torch.zeros(2), "callbacks": {"x": {"best_model_path": 5}, "y": 3}}, tmp_path / "a.ckpt")
    (tmp_path / "b.ckpt").write_bytes(b"garbage")
    assert list(Lightning().needed(list_folder(tmp_path))) == []
