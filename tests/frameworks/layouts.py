"""How trainers that cannot run here write: names and order of docs/formats.md.

Each layout is a generator that yields None when a step is saved, and before that, in one of the steps, the path of what is
all there but for its marker.
"""

import os
import pickle

import torch
from safetensors.torch import save

STEPS = (100, 200, 300)
HALT = 200  # the step of which the marker is late


def weights(step):
    return {"layer.weight": torch.full((8, 4), float(step)), "layer.bias": torch.arange(8.0) + step}


def moments(step):
    return {"exp_avg": torch.full((8, 4), step / 2)}


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
