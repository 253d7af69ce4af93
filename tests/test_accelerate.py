"""ScheduleLR under Accelerate, without an adapter: it counts real updates, whoever calls its step() how often.

Run as a script, by torchrun or alone, this file trains in each way and prints what the optimiser saw as JSON.
"""

import copy
import json
import os
import subprocess
import sys
from functools import cache
from itertools import product
from pathlib import Path

import pytest
import torch

import cyclr
from cyclr.torch import ScheduleLR, range_test

accelerate = pytest.importorskip("accelerate")
from accelerate import Accelerator, DataLoaderConfiguration  # noqa: E402
from accelerate.data_loader import SeedableRandomSampler  # noqa: E402
from accelerate.state import AcceleratorState, GradientState  # noqa: E402

SCHEDULE = cyclr.triangular(0.001, 0.05, stepsize=5)
ROWS, BATCH, EPOCHS = 44, 4, 3
WAYS = [
    (accumulation, split, built)
    for accumulation, split, built in product([1, 4], [False, True], ["prepared", "bare", "on prepared"])
]
ways = pytest.mark.parametrize("way", WAYS, ids=str)


def start(accumulation, split, built, seed=0, shuffle=False):
    """An accelerator, and model, optimiser, loader and scheduler as a user has them; the rates used come into a list.

    The scheduler is prepared by Accelerate, or left bare, or made of the optimiser that was prepared.
    """
    AcceleratorState._reset_state()
    GradientState._reset_state()
    config = DataLoaderConfiguration(split_batches=split)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation, dataloader_config=config)
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(0.2), torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    data = torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(7))
    loader = torch.utils.data.DataLoader(data, BATCH, shuffle=shuffle)
    scheduler = None if built == "on prepared" else ScheduleLR(optimizer, SCHEDULE)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    if built == "on prepared":
        scheduler = ScheduleLR(optimizer, SCHEDULE)
    elif built == "prepared":
        scheduler = accelerator.prepare(scheduler)
    rates = []
    inner = optimizer.optimizer
    inner.register_step_pre_hook(lambda *_: rates.append(inner.param_groups[0]["lr"]))
    return accelerator, model, optimizer, loader, scheduler, rates


def epoch(accelerator, model, optimizer, loader, scheduler):
    """The loop in Accelerate's documentation."""
    for x in loader:
        with accelerator.accumulate(model):
            accelerator.backward(model(x).square().mean())
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()


def weights(model):
    return [p.tolist() for p in model.parameters()]


def trained(way):
    *parts, rates = start(*way)
    for _ in range(EPOCHS):
        epoch(*parts)
    return {"rates": rates, "weights": weights(parts[1])}


def resumed(way, folder):
    """A training, one more that is stopped in mid-cycle, and one from another start that goes on from there."""
    *parts, whole = start(*way)
    for _ in range(EPOCHS):
        epoch(*parts)
    wanted = weights(parts[1])
    *parts, first = start(*way)
    epoch(*parts)
    if way[2] != "prepared":
        parts[0].register_for_checkpointing(parts[-1])
    parts[0].save_state(folder)
    *parts, second = start(*way, seed=1)
    if way[2] != "prepared":
        parts[0].register_for_checkpointing(parts[-1])
    parts[0].load_state(folder)
    for _ in range(EPOCHS - 1):
        epoch(*parts)
    return {"whole": whole, "parts": [first, second], "same": weights(parts[1]) == wanted}


def script(folder):
    torch.set_num_threads(1)
    rank = Accelerator(cpu=True).process_index
    outcome = {
        "processes": Accelerator(cpu=True).num_processes,
        "trained": [trained(way) for way in WAYS],
        "resumed": [resumed(way, str(folder / str(index))) for index, way in enumerate(WAYS)],
    }
    (folder / f"{rank}.json").write_text(json.dumps(outcome))


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What each process saw, when they are this many."""

    @cache
    def run(processes):
        folder = tmp_path_factory.mktemp("accelerate")
        launch = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--rdzv-backend=c10d"]
        launch += ["--rdzv-endpoint=127.0.0.1:0"]
        command = [sys.executable, *(launch if processes > 1 else []), __file__, str(folder)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        outcomes = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(processes)]
        assert [each["processes"] for each in outcomes] == [processes] * processes
        return outcomes

    return run


def updates(accumulation, split, processes):
    """Updates in one epoch: Accelerate makes one at the end of the data, however few batches it has by then."""
    batches = -(-ROWS // (BATCH if split else BATCH * processes))
    return -(-batches // accumulation)


@ways
@pytest.mark.parametrize("processes", [1, 2])
def test_every_update_has_the_schedules_rate(seen, processes, way):
    first, *others = (outcome["trained"][WAYS.index(way)] for outcome in seen(processes))
    assert first["rates"] == [SCHEDULE(step) for step in range(EPOCHS * updates(*way[:2], processes))]
    assert all(other == first for other in others)


@ways
@pytest.mark.parametrize("processes", [1, 2])
def test_a_saved_state_goes_on_in_mid_cycle_to_the_same_bits(seen, processes, way):
    for outcome in seen(processes):
        resumption = outcome["resumed"][WAYS.index(way)]
        first, second = resumption["parts"]
        assert first + second == resumption["whole"]
        assert len(first) == updates(*way[:2], processes)
        assert resumption["same"]


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_range_test_of_a_prepared_optimiser_accumulates_as_accelerate_does(accumulation):
    _, model, optimizer, loader, *_ = start(accumulation, False, "bare")
    seen = []

    def batch_loss(net, batch):
        seen.append(len(batch))
        return net(batch).square().mean()

    curve = range_test(model, optimizer, None, loader, ramp=cyclr.ramp(0.0, 0.01, 10), batch_loss=batch_loss)
    assert (len(curve), len(seen)) == (10, 10 * accumulation)


def test_a_range_test_of_a_prepared_optimiser_scales_its_loss_with_accelerates_scaler(monkeypatch):
    _, model, optimizer, loader, *_ = start(1, False, "bare")
    optimizer.scaler = torch.amp.GradScaler("cpu")
    scaled = []
    scale = optimizer.scaler.scale
    monkeypatch.setattr(optimizer.scaler, "scale", lambda loss: scaled.append(1) or scale(loss))
    loss = lambda net, batch: net(batch).square().mean()  # noqa: E731
    range_test(model, optimizer, None, loader, ramp=cyclr.ramp(0.0, 0.01, 10), batch_loss=loss)
    assert len(scaled) == 10


@pytest.mark.parametrize("prepared", [True, False])
def test_a_range_test_leaves_accelerates_own_sampler_as_it_was(prepared):
    """One that has not been read and has no generator yet; or, in a plain loader, one that counts its epochs itself."""
    data = torch.arange(60.0).view(20, 3) / 60
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if prepared:
        GradientState._reset_state()
        AcceleratorState._reset_state()
        config = DataLoaderConfiguration(use_seedable_sampler=True)
        loader = Accelerator(cpu=True, dataloader_config=config).prepare(
            torch.utils.data.DataLoader(data, 4, shuffle=True)
        )
    else:
        loader = torch.utils.data.DataLoader(data, 4, sampler=SeedableRandomSampler(data, data_seed=1))
        list(loader)
    other = copy.deepcopy(loader)
    loss = lambda net, batch: net(batch).square().mean()  # noqa: E731
    range_test(model, optimizer, None, loader, ramp=cyclr.ramp(0.0, 0.01, 12), batch_loss=loss)  # two epochs and more
    for _ in range(2):
        assert torch.equal(torch.cat(list(loader)), torch.cat(list(other)))


if __name__ == "__main__":
    script(Path(sys.argv[1]))
    os._exit(0)  # gloo's threads, if they are still there at the very end, abort the process now and then
