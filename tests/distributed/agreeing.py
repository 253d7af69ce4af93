"""A curve is the mean over the processes, and every decision is the same in all."""

import random

import torch
import torch.distributed as dist
from scenario import RAMP, Recorded, attempt, batches, build, scenario
from torch.nn.functional import cross_entropy

import cyclr


@scenario(2, 4)
def given_ramp(rank, size):
    seen = {}
    for kind in ("ddp", "fsdp"):
        loss_fn = Recorded()
        seen[kind] = attempt(*build(kind, adam=kind == "fsdp"), batches(rank), loss_fn, ramp=RAMP) | {
            "own": loss_fn.losses
        }
    return seen


@scenario(2)
def default_ramp(rank, size):
    def validate():
        return float((net(x).argmax(-1) == y).float().mean())

    seen = {}
    for kind in ("ddp", "fsdp"):
        net, optimizer = build(kind)
        x, y = batches(rank, 1, 40)[0]
        seen[kind] = attempt(net, optimizer, batches(rank), steps=20, validate=validate, validate_every=4)
    return seen


@scenario(4)
def groups_of_two(rank, size):
    """Two trainings beside each other: each averages over its own processes."""
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    net, optimizer = build("ddp", process_group=groups[rank // 2])
    return attempt(net, optimizer, batches(rank), ramp=cyclr.ramp(0.0, 0.5, 20 + rank // 2))


@scenario(2)
def as_one_process(rank, size):
    """Every process takes its share of the batches that `alone` sees whole; without dropout, which would differ."""
    seen = {}
    share = [(x.chunk(size)[rank], y.chunk(size)[rank]) for x, y in batches(0, 10, 24)]
    for kind in ("ddp", "fsdp", "plain"):
        net, optimizer = build(kind)
        net.eval()
        if kind != "plain":
            seen[kind] = attempt(net, optimizer, share, ramp=RAMP)["values"]
            seen[f"{kind}, accumulated"] = attempt(net, optimizer, halved(share), ramp=RAMP, accumulation=2)["values"]
    dist.destroy_process_group()
    seen["alone"] = attempt(net, optimizer, batches(0, 10, 24), ramp=RAMP)["values"]
    return seen


def halved(data):
    return [half for x, y in data for half in zip(x.chunk(2), y.chunk(2), strict=True)]


@scenario(1)
def one_process(rank, size):
    """A group of one changes nothing and calls nobody."""
    net, optimizer = build("plain")
    inside = attempt(net, optimizer, batches(0), ramp=RAMP)
    dist.destroy_process_group()
    return {"group": inside["curve"], "none": attempt(net, optimizer, batches(0), ramp=RAMP)["curve"]}


@scenario(2)
def accumulation(rank, size):
    """How often DDP reduces gradients."""
    net, optimizer = build("ddp")
    reduced = []

    def hook(state, bucket):
        reduced.append(bucket.is_last())
        return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda done: done.value()[0] / size)

    net.register_comm_hook(None, hook)
    seen = attempt(net, optimizer, batches(rank), ramp=RAMP, accumulation=3)
    return seen | {"reduced": len(reduced)}


# Every decision is the same in all processes


@scenario(2)
def nan_in_one(rank, size):
    seen = {}
    for kind in ("ddp", "fsdp"):
        data = batches(rank, 40)
        if rank == 1:
            data[9] = (data[9][0] * float("nan"), data[9][1])
        loss_fn = Recorded()
        seen[kind] = attempt(*build(kind), data, loss_fn, ramp=RAMP) | {"own": loss_fn.losses}
    net, optimizer = build("ddp")
    values = iter([0.5, 0.6, float("nan") if rank else 0.7, 0.8])
    seen["validation"] = attempt(
        net, optimizer, batches(rank), ramp=RAMP, validate=lambda: next(values), validate_every=5
    )
    return seen


@scenario(2)
def skip_in_one(rank, size):
    """Each process has a net and a scaler of its own; gradients overflow in one of them."""
    net, optimizer = build("plain")
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    read = []

    def batch_loss(net, batch):
        read.append(0)
        loss = cross_entropy(net(batch[0]), batch[1])
        return Overflowing.apply(loss) if rank == 1 and len(read) == 5 else loss

    seen = attempt(net, optimizer, batches(rank), None, ramp=RAMP, batch_loss=batch_loss, scaler=scaler)
    return seen | {"read": len(read)}


class Overflowing(torch.autograd.Function):
    """A finite loss with infinite gradients."""

    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("inf")


@scenario(2)
def different_arguments(rank, size):
    net, optimizer = build("ddp")
    return {
        "ramp": attempt(net, optimizer, batches(rank), ramp=cyclr.ramp(0.0, 0.5, 20 + rank)),
        "accumulation": attempt(net, optimizer, batches(rank), ramp=RAMP, accumulation=1 + rank),
        "validate": attempt(net, optimizer, batches(rank), ramp=RAMP, validate=[None, lambda: 0.5][rank]),
        "metrics": attempt(net, optimizer, batches(rank), None, ramp=RAMP, batch_loss=measuring(rank)),
        "too many": attempt(net, optimizer, batches(rank), None, ramp=RAMP, batch_loss=measuring(0, 16)),
        "then": attempt(net, optimizer, batches(rank), ramp=RAMP),
    }


def measuring(rank, count=1):
    def batch_loss(net, batch):
        return cross_entropy(net(batch[0]), batch[1]), {f"metric {k + rank}": 0.5 for k in range(count)}

    return batch_loss


@scenario(4)
def several(rank, size):
    return [one_of_many(seed) for seed in range(8)]


def one_of_many(seed):
    """A range test that breaks at some update: random scales, ramps and data, NaN in one of the processes or none."""
    pick = random.Random(seed)  # the same in all processes
    rank, size = dist.get_rank(), dist.get_world_size()
    kind, adam, scale = pick.choice(["ddp", "ddp", "fsdp"]), pick.random() < 0.3, 10 ** pick.uniform(-1, 1)
    end, steps = 10 ** pick.uniform(0, 3) / scale, pick.randrange(40, 70)
    ill, at = pick.randrange(2 * size), pick.randrange(40)
    data = [(x * scale, y) for x, y in batches(rank + 10 * seed, 40)]
    if rank == ill:
        data[at] = (data[at][0] * float("nan"), data[at][1])
    net, optimizer = build(kind, adam=adam)
    return attempt(net, optimizer, data, ramp=cyclr.ramp(end * 1e-4, end, steps, pick.choice(["linear", "log"])))
