"""A process is lost: it raises an error, dies, or does not answer."""

import os
import time

from scenario import RAMP, attempt, batches, build, scenario, train
from torch.nn.functional import cross_entropy

TIMEOUT = 3  # seconds that a group waits for a process that does not answer


@scenario(2)
def error_in_one_ddp(rank, size):
    return lost("ddp", rank, OSError("the disk with the data is gone"))


@scenario(4)
def error_in_one_fsdp(rank, size):
    return lost("fsdp", rank, OSError("the disk with the data is gone"))


@scenario(4)
def death_ddp(rank, size):
    return lost("ddp", rank, None)


@scenario(2)
def death_fsdp(rank, size):
    return lost("fsdp", rank, None)


def lost(kind, rank, error):
    """Process 1 raises an error, or dies, in the middle of the range test."""
    net, optimizer = build(kind)
    train(net, optimizer, batches(rank)[:2])
    return attempt(net, optimizer, Lossy(batches(rank), error if rank == 1 else 0), ramp=RAMP)


class Lossy:
    """Batches, one of which raises an error or, if that is None, ends the process."""

    def __init__(self, data, error):
        self.data, self.error = data, error

    def __iter__(self):
        for number, batch in enumerate(self.data):
            if number == 6 and self.error != 0:
                if self.error is None:
                    os._exit(9)
                raise self.error
            yield batch


@scenario(2, timeout=TIMEOUT)
def called_in_one(rank, size):
    if rank == 1:
        time.sleep(TIMEOUT + 2)
        return None
    net, optimizer = build("plain")
    return attempt(net, optimizer, batches(rank), ramp=RAMP)


@scenario(2, timeout=TIMEOUT)
def silence(rank, size):
    """Process 1 stops answering in the middle of the range test, but lives on."""
    net, optimizer = build("ddp")

    def loss_fn(output, y):
        calls.append(0)
        if rank == 1 and len(calls) == 5:
            time.sleep(TIMEOUT + 2)
        return cross_entropy(output, y)

    calls = []
    return attempt(net, optimizer, batches(rank), loss_fn, ramp=RAMP)
