"""Afterwards everything is as it was, and training goes on as if nothing had happened."""

import gc

import torch
import torch.distributed as dist
from scenario import RAMP, SHORT, attempt, batches, build, raw, scenario, train
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.nn.functional import cross_entropy

from cyclr.torch import range_test, restored

KINDS = {
    "ddp": {},
    "ddp, views": {"gradient_as_bucket_view": True},
    "ddp, unused": {"find_unused_parameters": True},
    "ddp, static": {"static_graph": True},
    "ddp, norm": {"norm": True},
    "fsdp": {"adam": True},
    "fsdp, gathered": {"reshard_after_forward": False},
    "fsdp, mixed": {"mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)},
}


@scenario(2, 4)
def training_afterwards(rank, size):
    """Training with a range test in it and without: what is different in the end, of what was tried."""
    different = []
    for name, options in ({"ddp": {}, "fsdp": {}} if size > 2 else KINDS).items():
        for updates in (0, 1, 2) if "ddp" in name else (0, 2)[: 4 // size]:
            end = trained_around(None, name, options, updates, rank)
            for interruption in INTERRUPTIONS:
                if trained_around(interruption, name, options, updates, rank) != end:
                    different.append(f"{name}, {interruption.__name__} after {updates} updates")
    return different


def trained_around(interruption, name, options, updates, rank):
    net, optimizer = build(name.partition(",")[0], **options)
    train(net, optimizer, batches(rank)[:updates])
    if updates == 2:  # leaves the outermost FSDP2 module with gathered parameters
        with torch.no_grad():
            net(batches(rank)[0][0])
    if interruption is not None:
        interruption(net, optimizer, batches(rank))
    return train(net, optimizer, batches(rank)[updates : updates + 3])


def whole(net, optimizer, data):
    range_test(net, optimizer, cross_entropy, data, ramp=SHORT)


def failing(where):
    """A range test that fails in all processes at once, in the middle of the net."""

    def interruption(net, optimizer, data):
        inner = getattr(net, "module", net)

        def batch_loss(net, batch):
            read.append(0)
            if len(read) == 3:
                inner.fails = where
            return cross_entropy(net(batch[0]), batch[1])

        read = []
        try:
            range_test(net, optimizer, None, data, ramp=SHORT, batch_loss=batch_loss)
        except OSError:
            return
        raise AssertionError("nothing failed")

    interruption.__name__ = f"{where} failed"
    return interruption


def gathered(net, optimizer, data):
    """Ends with the parameters of FSDP2 gathered, of the outermost module at least."""
    with restored(net, optimizer):
        train(net, optimizer, data[:1])
        with torch.no_grad():
            net(data[0][0])


INTERRUPTIONS = [whole, failing("forward"), failing("backward"), gathered]


@scenario(2)
def state_dict_afterwards(rank, size):
    """FSDP2 gives its shards, and takes them, whatever came before: a hook of its own sees to that."""
    net, optimizer = build("fsdp", reshard_after_forward=False)
    before = raw(net.state_dict())
    range_test(net, optimizer, cross_entropy, batches(rank), ramp=RAMP)
    with torch.no_grad():
        net(batches(rank)[0][0])
    whole = not any(hasattr(parameter, "to_local") for parameter in net.parameters())
    return {"gathered": whole, "same": raw(net.state_dict()) == before}


@scenario(2)
def memory_afterwards(rank, size):
    """Bytes of all tensors before and after, with FSDP2's parameters gathered in between."""
    net, optimizer = build("fsdp")
    train(net, optimizer, batches(rank)[:2])
    before = bytes_alive()
    gathered(net, optimizer, batches(rank))
    return bytes_alive() - before


def bytes_alive():
    gc.collect()
    storages = [each.untyped_storage() for each in gc.get_objects() if type(each) in (torch.Tensor, nn.Parameter)]
    return sum({each.data_ptr(): each.nbytes() for each in storages}.values())


@scenario(2)
def gradients_not_reduced(rank, size):
    return {name: not_reduced(rank, KINDS[name]) for name in ("fsdp", "fsdp, mixed")}


def not_reduced(rank, options):
    net, optimizer = build("fsdp", **options)
    net.set_requires_gradient_sync(False)
    cross_entropy(net(batches(rank)[0][0]), batches(rank)[0][1]).backward()
    refused = attempt(net, optimizer, batches(rank), ramp=RAMP)
    net.set_requires_gradient_sync(True)
    cross_entropy(net(batches(rank)[1][0]), batches(rank)[1][1]).backward()
    return {"refused": refused, "reduced": attempt(net, optimizer, batches(rank), ramp=SHORT)}


@scenario(2)
def comm_hook_stays(rank, size):
    """DDP reduces gradients in the user's own way before and after."""
    net, optimizer = build("ddp")
    net._register_builtin_comm_hook(dist.BuiltinCommHookType.FP16_COMPRESS)
    range_test(net, optimizer, cross_entropy, batches(rank), ramp=RAMP)
    train(net, optimizer, batches(rank)[:1])
    return all(torch.equal(p.grad, p.grad.half().float()) for p in net.parameters())
