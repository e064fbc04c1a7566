"""torch.distributed.checkpoint: two processes with sharded weights, `step-<n>` directories, the older ones pruned."""

import os
import shutil
import tempfile
from pathlib import Path

from rehearsal import Rehearsal, rehearse  # isort: skip  (sets the environment before the libraries are imported)

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

WORLD = 2


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 1))


def train(rehearsal: Rehearsal):
    """The first process is this one; the second one says nothing."""
    store = rehearsal.out.parent / f"{rehearsal.out.name}.store"
    second = os.fork()
    if second == 0:
        code = 1
        rehearsal.fall_silent()
        try:
            worker(rehearsal, 1, store, lambda: None)
            code = 0
        finally:
            os._exit(code)
    losses = worker(rehearsal, 0, store, rehearsal.pause)
    assert os.waitpid(second, 0)[1] == 0
    return {"losses": losses}


def worker(rehearsal, rank, store, pause):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    out = rehearsal.out / "outputs" / "checkpoint"  # as torchtitan has it
    model = network()
    fully_shard(model, mesh=init_device_mesh("cpu", (WORLD,)))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05, foreach=False)
    losses = []
    for step in range(1, 9):
        batch = torch.full((2, 4), float(step + rank))
        loss = torch.nn.functional.mse_loss(model(batch), torch.ones(2, 1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step % 2 == 0:
            weights, moments = get_state_dict(model, optimizer)
            dcp.save({"model": weights, "optimizer": moments, "step": step}, checkpoint_id=out / f"step-{step}")
            dist.barrier()
            if rank == 0:
                rehearsal.saved(out / f"step-{step}", "dcp", step=step)
                pause()
                if step > 4:
                    shutil.rmtree(out / f"step-{step - 4}")
            dist.barrier()
    dist.destroy_process_group()
    return losses


def load(path: Path):
    """Collected in one process, as an evaluation would."""
    with tempfile.NamedTemporaryFile() as whole:
        dcp_to_torch_save(path, whole.name)
        state = torch.load(whole.name, weights_only=False)
    model = network()
    model.load_state_dict(state["model"], strict=True)
    moments = {f"{n}.{k}": v for n, s in state["optimizer"]["state"].items() for k, v in s.items()}
    return {**model.state_dict(), **moments, "step": torch.tensor(state["step"])}


if __name__ == "__main__":
    rehearse(train, load)
