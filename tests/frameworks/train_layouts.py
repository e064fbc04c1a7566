"""Layouts of trainers that cannot run here, written in their order: docs/formats.md. torch writes the files.

Every file is written in two halves with a look between. Each layout is a generator that yields
None when a step is saved, and before that, in one of the steps, the path of what is all there but for its marker.
"""

import io
import json
import os
import pickle
import shutil
from pathlib import Path

from rehearsal import Rehearsal, rehearse  # isort: skip  (sets the environment before the libraries are imported)

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save

STEPS = (100, 200, 300)
HALT = 200  # the step of which the marker is late


def weights(step):
    return {"layer.weight": torch.full((8, 4), float(step)), "layer.bias": torch.arange(8.0) + step}


def moments(step):
    return {"exp_avg": torch.full((8, 4), step / 2)}


class Writer:
    def __init__(self, rehearsal, name):
        self.rehearsal, self.out = rehearsal, rehearsal.out / name
        self.out.mkdir()

    def write(self, name, data):
        """In place, as most trainers do."""
        path = self.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rehearsal.look(path)
        with path.open("wb") as file:
            file.write(data[:len(data) // 2])
            file.flush()
            self.rehearsal.look(path)
            file.write(data[len(data) // 2:])
        self.rehearsal.look(path)

    def torch(self, name, content, **how):
        data = io.BytesIO()
        torch.save(content, data, **how)
        self.write(name, data.getvalue())

    def json(self, name, content):
        self.write(name, json.dumps(content).encode())

    def text(self, name, content):
        self.write(name, content.encode())

    def distributed(self, name, content):
        dcp.save(content, checkpoint_id=self.out / name, no_dist=True)
        self.rehearsal.look(self.out / name)

    def remove(self, name):
        path = self.out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
        self.rehearsal.look(path)

    def link(self, name, target):
        (self.out / name).unlink(missing_ok=True)
        self.rehearsal.look(self.out / name)
        (self.out / name).symlink_to(target)

    def saved(self, name, format_, **facts):
        self.rehearsal.saved(self.out / name, format_, **facts)


def deepspeed(w):
    for step in STEPS:
        for rank in range(2):
            w.torch(f"global_step{step}/zero_pp_rank_{rank}_mp_rank_00_optim_states.pt",
                    {"optimizer_state_dict": moments(step), "ds_version": "0.18"})
        w.torch(f"global_step{step}/mp_rank_00_model_states.pt",
                {"module": weights(step), "global_steps": step, "dp_world_size": 2})
        w.text("zero_to_fp32.py", "# converts\n")
        if step == HALT:
            yield w.out / f"global_step{step}"
        w.text("latest", f"global_step{step}")
        w.saved(f"global_step{step}", "deepspeed", step=step)
        yield


def hunyuan(w):
    """DeepSpeed under tags of the script's own, one of which is written again and again."""
    for step in STEPS:
        for tag in (f"{step:07d}.pt", "latest.pt"):
            w.torch(f"{tag}/mp_rank_00_model_states.pt", {"module": weights(step), "global_steps": step, "dp_world_size": 1})
            w.torch(f"{tag}/zero_pp_rank_0_mp_rank_00_optim_states.pt", {"optimizer_state_dict": moments(step)})
            w.text("latest", tag)
            w.saved(tag, "deepspeed", step=step)
        yield


def megatron(w):
    for step in STEPS:
        name = f"iter_{step:07d}"
        w.torch(f"{name}/common.pt", {"iteration": step, "args": {}})
        w.distributed(name, {"model": weights(step), "optimizer": moments(step)})
        w.json(f"{name}/metadata.json", {"sharded_backend": "torch_dist", "sharded_backend_version": 1,
                                         "common_backend": "torch", "common_backend_version": 1})
        if step == HALT:
            yield w.out / name
        w.text("latest_checkpointed_iteration.txt", str(step))
        w.saved(name, "megatron", step=step)
        yield


def megatron_legacy(w):
    for step in STEPS:
        for rank in range(2):
            w.torch(f"iter_{step:07d}/mp_rank_{rank:02d}/model_optim_rng.pt", {"model": weights(step), "iteration": step})
        if step == HALT:
            yield w.out / f"iter_{step:07d}"
        w.text("latest_checkpointed_iteration.txt", str(step))
        w.saved(f"iter_{step:07d}", "megatron", step=step)
        yield


def olmo_core(w):
    for step in STEPS:
        temporary = f"step{step}-tmp"
        w.torch(f"{temporary}/train/rank0.pt", {"global_step": step})
        w.distributed(f"{temporary}/model_and_optim", {"model": weights(step), "optim": moments(step)})
        w.json(f"{temporary}/config.json", {"model": {"d_model": 8}})
        w.json(f"{temporary}/.metadata.json", {"version": "2.0"})
        if step == HALT:
            yield w.out / temporary
        (w.out / temporary).rename(w.out / f"step{step}")
        w.saved(f"step{step}", "dcp", step=step)
        if step == STEPS[-1]:
            w.remove(f"step{STEPS[0]}/.metadata.json")  # the marker first
            w.remove(f"step{STEPS[0]}")
        yield


def lightning_sharded(w):
    for epoch, step in enumerate(STEPS):
        name = f"epoch={epoch}-step={step}.ckpt"
        w.distributed(name, {"state_dict": weights(step), "optimizer_0": moments(step)})
        if step == HALT:
            yield w.out / name
        w.torch(f"{name}/meta.pt", {"epoch": epoch, "global_step": step, "pytorch-lightning_version": "2.6.0"})
        w.saved(name, "lightning-directory", step=step, epoch=epoch)
        yield


def edm2(w):
    for kimg in STEPS:
        for ema in ("0.050", "0.100"):
            network = {"ema": {k: v.numpy() for k, v in weights(kimg).items()}, "dataset_kwargs": {}}
            w.write(f"network-snapshot-{kimg:07d}-{ema}.pkl", pickle.dumps(network))
        w.torch(f"training-state-{kimg:07d}.pt", {"state": {"cur_nimg": 1000 * kimg}, "net": weights(kimg)})
        w.saved(f"network-snapshot-{kimg:07d}-0.050.pkl", "network-pickle", step=kimg)
        yield


def nanochat(w):
    for step in STEPS:
        w.torch(f"model_{step:06d}.pt", weights(step))
        w.json(f"meta_{step:06d}.json", {"step": step, "val_bpb": 0.5, "model_config": {}})
        for rank in range(2):
            w.torch(f"optim_{step:06d}_rank{rank}.pt", moments(step))
        w.saved(f"model_{step:06d}.pt", "file-set", step=step)
        yield


def fvcore(w):
    for step in STEPS:
        content = {"model": weights(step), "optimizer": moments(step), "scheduler": {"last_epoch": step}, "iteration": step}
        w.torch(f"model_{step:07d}.pth", content)
        w.text("last_checkpoint", f"model_{step:07d}.pth")
        if step > STEPS[1]:
            w.remove(f"model_{STEPS[0]:07d}.pth")
        w.saved(f"model_{step:07d}.pth", "fvcore", step=step)
        yield
    w.torch("model_final.pth", content)
    w.text("last_checkpoint", "model_final.pth")
    w.saved("model_final.pth", "fvcore", step=step)


def composer(w):
    for epoch, step in enumerate(STEPS):
        name = f"ep{epoch}-ba{step}-rank0.pt"
        w.torch(name, {"state": {"model": weights(step), "timestamp": {"Timestamp": {"batch": step}}}, "rng": []})
        w.link("latest-rank0.pt", name)
        if epoch > 0:
            w.remove(f"ep{epoch - 1}-ba{STEPS[epoch - 1]}-rank0.pt")
        w.saved(name, "torch-zip", step=step, epoch=epoch)
        yield


def legacy(w):
    for step in STEPS:
        content = {"state_dict": weights(step), "step": step, "loss": step / 8}
        w.torch(f"checkpoint_{step}.pth", content, _use_new_zipfile_serialization=False)
        w.torch("last.pth", content, _use_new_zipfile_serialization=False)
        w.saved("last.pth", "torch-legacy", step=step, metrics={"loss": step / 8})
        w.saved(f"checkpoint_{step}.pth", "torch-legacy", step=step, metrics={"loss": step / 8})
        yield


def nemo(w):
    """A marker beside it while it is saved, and while it is removed."""
    for step in STEPS:
        name = f"model--val_loss={step / 1000:.2f}-step={step}.ckpt"
        w.text(f"{name}-unfinished", "")
        w.torch(name, {"state_dict": weights(step), "global_step": step})
        if step == HALT:
            yield w.out / name
        w.remove(f"{name}-unfinished")
        w.saved(name, "torch-zip", step=step, metrics={"val_loss": step / 1000})
        yield


def metadata_of_a_run(w):
    """The metadata first, then Lightning files, an adapter that is overwritten, and links to the best and the last."""
    w.json("checkpoint_metadata.json", {"experiment_name": "pano", "stage": "finetune", "dataset": "quic360"})
    for epoch, step in enumerate(STEPS):
        name = f"siglip_mlp_anyres-e2p_quic360_epoch{epoch:02d}_loss{step / 1000:.4f}.ckpt"
        w.torch(name, {"state_dict": weights(step), "epoch": epoch, "global_step": step})
        w.json("lora_weights/adapter_config.json", {"peft_type": "LORA", "r": 2})
        w.write("lora_weights/adapter_model.safetensors", save(moments(step)))
        w.link("last.ckpt", name)
        if epoch == 0:
            w.link("best.ckpt", name)
        w.saved(name, "metadata-directory", epoch=epoch, metrics={"loss": step / 1000})
        yield


def metadata_of_each(w):
    for epoch, step in enumerate(STEPS):
        name = f"stage1_epoch{epoch}"
        w.torch(f"{name}/model.ckpt", {"state_dict": weights(step), "epoch": epoch, "global_step": step})
        w.json(f"{name}/lora_weights/adapter_config.json", {"peft_type": "LORA", "r": 2})
        w.write(f"{name}/lora_weights/adapter_model.safetensors", save(moments(step)))
        w.json(f"{name}/checkpoint_metadata.json", {"stage": "stage1", "epoch": epoch, "metrics": {"val_loss": step / 1000},
                                                    "training_config": {"use_lora": True}})
        w.saved(name, "metadata-directory", epoch=epoch, metrics={"val_loss": step / 1000})
        yield


def replaced(w):
    """The careful way, under one name: a new version each time."""
    for step in STEPS:
        w.write("model.safetensors.tmp", save(weights(step), metadata={"step": str(step)}))
        os.replace(w.out / "model.safetensors.tmp", w.out / "model.safetensors")
        w.saved("model.safetensors", "safetensors", step=step)
        yield


LAYOUTS = (deepspeed, hunyuan, megatron, megatron_legacy, olmo_core, lightning_sharded, edm2, nanochat, fvcore, composer,
           legacy, nemo, metadata_of_a_run, metadata_of_each, replaced)


def train(rehearsal: Rehearsal):
    """All side by side, a step of each in turn."""
    running = [layout(Writer(rehearsal, layout.__name__)) for layout in LAYOUTS]
    for step in STEPS:
        halted = {layout: path for layout in running if (path := next(layout)) is not None}
        if halted:
            rehearsal.hold(halted.values())
        assert all(next(layout) is None for layout in halted), f"more than one halt at step {step}"
        rehearsal.pause()
    assert all(next(layout, "over") == "over" for layout in running)
    return {"steps": STEPS}


def load(path: Path):
    """All tensors in the files of a checkpoint, and of those that belong to it."""
    arrays = {}
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.suffix in (".pt", ".pth", ".ckpt") and file.is_file():
            _collect(torch.load(file, weights_only=True), str(file.relative_to(path.parent)), arrays)
        elif file.suffix == ".pkl":
            _collect(pickle.loads(file.read_bytes()), file.name, arrays)
        elif file.suffix == ".safetensors":
            _collect(load_file(file), file.name, arrays)
        elif file.name == ".metadata":
            described = dcp.FileSystemReader(file.parent).read_metadata().state_dict_metadata
            state = {k: torch.empty(v.size) for k, v in described.items()}
            dcp.load(state, checkpoint_id=file.parent, no_dist=True)
            _collect(state, str(file.parent.relative_to(path.parent)), arrays)
    assert arrays, f"nothing in {path}"
    return arrays


def _collect(value, name, arrays):
    if isinstance(value, dict):
        for key, inner in value.items():
            _collect(inner, f"{name}.{key}", arrays)
    elif hasattr(value, "shape"):
        arrays[name] = value


if __name__ == "__main__":
    rehearse(train, load)
