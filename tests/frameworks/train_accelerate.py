"""Accelerate's save_state under its automatic names with a limit, and a loop as in the diffusers training scripts."""

import shutil
from pathlib import Path

from rehearsal import Rehearsal, rehearse  # isort: skip  (sets the environment before the libraries are imported)

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import load_file


def train(rehearsal: Rehearsal):
    return {"automatic": automatic(rehearsal), "diffusers": diffusers_script(rehearsal)}


def automatic(rehearsal):
    """`checkpoints/checkpoint_<n>`, where n counts the saves."""
    set_seed(0)
    out = rehearsal.out / "automatic"
    accelerator = Accelerator(cpu=True, project_config=ProjectConfiguration(
        project_dir=str(out), automatic_checkpoint_naming=True, total_limit=2))
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    model, optimizer, schedule = accelerator.prepare(model, optimizer, schedule)
    losses = []
    for step in range(1, 9):
        loss = torch.nn.functional.mse_loss(model(torch.randn(8, 4)), torch.ones(8, 1))
        losses.append(_step(accelerator, optimizer, loss))
        schedule.step()
        if step % 2 == 0:
            saved = accelerator.save_state()
            rehearsal.saved(saved, "accelerate", step=None)  # its name counts saves
            rehearsal.pause()
    accelerator.end_training()
    return {"losses": losses}


def diffusers_script(rehearsal, limit=2):
    """The loop of train_unconditional.py: hooks that save the U-Net, pruning before saving, the pipeline at the end."""
    set_seed(0)
    out = rehearsal.out / "diffusers"
    out.mkdir()
    accelerator = Accelerator(cpu=True, project_config=ProjectConfiguration(project_dir=str(out)))

    def save_model(models, weights, directory):
        for model in models:
            model.save_pretrained(Path(directory) / "unet")
            weights.pop()

    accelerator.register_save_state_pre_hook(save_model)
    unet = UNet2DModel(sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(8, 8),
                       norm_num_groups=4, down_block_types=("DownBlock2D", "DownBlock2D"),
                       up_block_types=("UpBlock2D", "UpBlock2D"))
    noises = DDPMScheduler(num_train_timesteps=10)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-3)
    unet, optimizer = accelerator.prepare(unet, optimizer)
    losses = []
    for global_step in range(1, 7):
        clean, noise, when = torch.rand(2, 3, 8, 8), torch.randn(2, 3, 8, 8), torch.randint(0, 10, (2,))
        predicted = unet(noises.add_noise(clean, noise, when), when).sample
        losses.append(_step(accelerator, optimizer, torch.nn.functional.mse_loss(predicted, noise)))
        if global_step % 2 == 0:
            there = [d for d in out.iterdir() if d.name.startswith("checkpoint")]
            there.sort(key=lambda d: int(d.name.split("-")[1]))
            for directory in there[:len(there) - limit + 1]:
                shutil.rmtree(directory)
            accelerator.save_state(out / f"checkpoint-{global_step}")
            rehearsal.saved(out / f"checkpoint-{global_step}", "accelerate", step=global_step)
            rehearsal.pause()
    DDPMPipeline(unet=accelerator.unwrap_model(unet), scheduler=noises).save_pretrained(out)
    rehearsal.saved(out / "model_index.json", "diffusers-pipeline")
    return {"losses": losses}


def _step(accelerator, optimizer, loss):
    accelerator.backward(loss)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def load(path: Path):
    if (path / "unet").is_dir():
        unet, info = UNet2DModel.from_pretrained(path / "unet", output_loading_info=True)
        assert not any(info.values()), info
        return {**unet.state_dict(), **_resume(path)}
    if path.name == "model_index.json":
        return dict(DDPMPipeline.from_pretrained(path.parent).unet.state_dict())
    return {**load_file(path / "model.safetensors"), **_resume(path)}


def _resume(path):
    """What resuming needs besides the weights; raises where a part is missing."""
    torch.load(path / "random_states_0.pkl", weights_only=False)
    state = torch.load(path / "optimizer.bin", weights_only=False)
    return {f"optimizer.{i}.{k}": v for i, s in state["state"].items() for k, v in s.items()}


if __name__ == "__main__":
    rehearse(train, load)
