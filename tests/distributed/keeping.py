"""Snapshots of a net that several processes train: whole ones, written by the first process alone."""

import tempfile

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from scenario import Net, batches, build, scenario, train

from cyclr.torch import Snapshots


@scenario(2, 4)
def snapshots(rank, size):
    seen = {}
    for kind in ("ddp", "fsdp"):
        net, optimizer = build(kind)
        train(net, optimizer, batches(rank, 3))
        folder = [tempfile.mkdtemp() if rank == 0 else None]
        dist.broadcast_object_list(folder)
        taken = Snapshots(folder[0], at=[3])(3, net)
        dist.barrier()
        members = Snapshots(folder[0], at=[3]).members
        kept = load_file(f"{folder[0]}/{members[0].file}")
        inner = net.module if kind == "ddp" else net
        whole = {name: each.full_tensor() if kind == "fsdp" else each for name, each in inner.named_parameters()}
        seen[kind] = {
            "taken": taken,
            "members": len(members),
            "names": sorted(kept) == sorted(Net().state_dict()),
            "same": all(torch.equal(kept[name], each.detach()) for name, each in whole.items()),
            "trained": not torch.equal(kept["a.weight"], fresh().a.weight),
        }
    return seen


def fresh():
    torch.manual_seed(0)
    return Net()
