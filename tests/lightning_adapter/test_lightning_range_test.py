"""What the trainer trains with, the range test trains with."""

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from small_lightning import QUIET, RAMP, Module, Pair, X, Y, loader_of, text, trainer_of
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from cyclr.lightning import range_test
from cyclr.torch import range_test as torch_range_test

pytestmark = QUIET


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}, {"gradient_clip_val": 0.3}], ids=str)
def test_it_sees_what_the_torch_range_test_sees(options):
    module, loader = Module(), loader_of(shuffle=False)  # Lightning shuffles once less, not at the end of an epoch
    curve = range_test(trainer_of(**options), module, loader, ramp=RAMP)
    parameters = list(module.parameters())
    expected = torch_range_test(
        module.net,
        torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
        cross_entropy,
        loader,
        ramp=RAMP,
        accumulation=options.get("accumulate_grad_batches", 1),
        clip=lambda: nn.utils.clip_grad_norm_(parameters, options.get("gradient_clip_val", 1e9)),
    )
    assert curve.lrs.tolist() == expected.lrs.tolist() == [RAMP(step) for step in range(12)]
    assert curve.values.tolist() == pytest.approx(expected.values.tolist(), rel=1e-6)


def test_after_a_fit_it_goes_on_from_the_optimisers_states():
    module, loader, trainer = Module(), loader_of(shuffle=False), trainer_of()
    trainer.fit(module, loader)
    module.net[3].p = 0.0
    seen = range_test(trainer, module, loader, ramp=RAMP).values.tolist()
    for optimizer, same in ((trainer.optimizers[0], True), (torch.optim.SGD(module.parameters(), 0.1, 0.9), False)):
        expected = torch_range_test(module.net, optimizer, cross_entropy, loader, ramp=RAMP).values.tolist()
        assert (seen == pytest.approx(expected, rel=1e-6)) == same


def test_schedulers_stand_still_where_lightning_steps_them():
    class Short(Module):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=5)  # an error if stepped more
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    assert len(range_test(trainer_of(), Short(), loader_of(), ramp=RAMP).lrs) == 12


def test_schedulers_that_the_module_steps_are_restored():
    class Nested(Pair):
        def configure_optimizers(self):
            optimizers, _ = super().configure_optimizers()
            part = torch.optim.lr_scheduler.ExponentialLR
            return optimizers, [torch.optim.lr_scheduler.ChainedScheduler([part(each, 0.9)]) for each in optimizers]

    module, trainer = Nested(), trainer_of()
    trainer.fit(module, loader_of())
    states = [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs]
    before = text(states)
    range_test(trainer, module, loader_of(), ramp=RAMP)
    assert text([config.scheduler.state_dict() for config in trainer.lr_scheduler_configs]) == before


def test_the_default_ramp_needs_no_numbers():
    module, done = Module(), []
    curve = range_test(
        trainer_of(), module, loader_of(), steps=40, progress=lambda *now: done.append(now[0]), meta={"of": "mine"}
    )
    assert curve.ramp["steps"] == 40
    assert done.count(1) >= 2  # passes, each from the start
    assert curve.meta["of"] == "mine"
    assert len(curve.meta["state_checksum"]) == 64


def test_every_group_of_every_optimiser_steps_at_the_ramps_rate_whatever_the_module_sets():
    class Own(Module):
        def configure_optimizers(self):
            groups = [{"params": self.net[0].parameters(), "lr_multiplier": 0.5}, {"params": self.net[4].parameters()}]
            optimizer = torch.optim.SGD(groups, lr=torch.tensor(0.05))
            return optimizer

        def training_step(self, batch, batch_idx):
            shown.append([float(group["lr"]) for group in self.optimizers().param_groups])
            return super().training_step(batch, batch_idx)

        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            for group in optimizer.param_groups:
                group["lr"] = torch.tensor(77.0)
            optimizer.step(closure=optimizer_closure)
            used.append([group["lr"].item() for group in optimizer.param_groups])

    used, shown = [], []
    range_test(trainer_of(accumulate_grad_batches=2), Own(), loader_of(), ramp=RAMP)
    rates = [pytest.approx([0.5 * RAMP(step), RAMP(step)], rel=1e-6) for step in range(12)]
    assert used == rates
    assert shown == [rate for rate in rates for _ in range(2)]


@pytest.mark.parametrize("answer", ["logged", "returned"])
def test_manual_optimisation_with_two_optimisers(answer):
    class Seen(Pair):
        def configure_optimizers(self):
            configured = super().configure_optimizers()
            for optimizer in configured[0]:
                optimizer.register_step_post_hook(lambda each, *_: used.append(each.param_groups[0]["lr"]))
            return configured

    used = []
    curve = range_test(trainer_of(), Seen(answer=answer), loader_of(), ramp=RAMP)
    assert used == [RAMP(step) for step in range(12) for _ in range(2)]
    assert curve.lrs.tolist() == [RAMP(step) for step in range(12)]
    assert curve.values[-1] < curve.values[0]


def test_a_point_is_an_update_where_the_module_accumulates_by_itself():
    module, batches = Pair(every=2), []
    module.on_train_batch_start = lambda batch, batch_idx: batches.append(batch_idx)
    curve = range_test(trainer_of(), module, loader_of(), ramp=RAMP, metric="second")
    assert len(curve.lrs) == 12
    assert len(batches) == 24


@pytest.mark.parametrize("fused", [False, True])  # fused optimisers skip by themselves
def test_updates_that_the_scaler_skips_are_made_again_and_are_no_points(fused):
    class Fused(Module):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.05, fused=fused)

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)
    trainer = trainer_of(plugins=MixedPrecision("16-mixed", "cpu", scaler))
    module, batches = Fused(), []
    module.on_train_batch_start = lambda batch, batch_idx: batches.append(batch_idx)
    curve = range_test(trainer, module, loader_of(), ramp=RAMP, metric="seen")
    assert curve.lrs.tolist() == [RAMP(step) for step in range(12)]
    assert curve.values.tolist() == batches[-12:]
    assert len(batches) > 12
    assert scaler.get_scale() == 2.0**30


def test_it_tests_in_the_trainers_precision():
    kinds = set()
    module = Module()
    module.net[0].register_forward_hook(lambda _, __, output: kinds.add(output.dtype))
    range_test(trainer_of(precision="bf16-mixed"), module, loader_of(), ramp=RAMP)
    assert kinds == {torch.bfloat16}
    assert len(module.net[0]._forward_hooks) == 1


def test_other_metrics_are_those_that_the_module_logs_or_returns():
    logged = range_test(trainer_of(), Module(), loader_of(), ramp=RAMP, metric="accuracy")
    assert logged.goal == "max"
    assert [each.metric for each in logged.companions] == ["loss"]
    assert all((8 * value) % 1 == 0 for value in logged.values)
    returned = range_test(trainer_of(), Module(), loader_of(), ramp=RAMP, metric="seen", goal="max")
    assert returned.goal == "max"
    assert returned.values.tolist() == [0, 1, 2, 3] * 3


def test_validation_is_in_eval_mode_and_the_curve_is_about_it():
    module, modes = Module(), []

    def validate():
        modes.append(module.net[3].training or torch.is_grad_enabled())
        return 0.5

    curve = range_test(trainer_of(), module, loader_of(), ramp=RAMP, validate=validate, validate_every=3)
    assert modes == [False] * 4
    assert (curve.metric, curve.values.tolist()) == ("validation accuracy", [0.5] * 4)
    assert [each.metric for each in curve.companions] == ["loss"]


class Data(pl.LightningDataModule):
    """Loaders made in setup, moved in a way of its own."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def prepare_data(self):
        self.seen.append("prepare_data")

    def setup(self, stage):
        self.seen.append(stage)
        self.data = TensorDataset(X, Y)

    def train_dataloader(self):
        return DataLoader(self.data, batch_size=8)

    def on_before_batch_transfer(self, batch, dataloader_idx):
        self.seen.append("transfer")
        return batch


def test_data_may_be_a_data_module():
    data, trainer = Data(), trainer_of()
    curve = range_test(trainer, Module(), data, ramp=RAMP)
    assert data.seen == ["prepare_data", "fit", *["transfer"] * 12]
    assert (data.trainer, trainer.datamodule, hasattr(data, "data")) == (None, None, False)
    module = Module()
    module.train_dataloader = data.train_dataloader
    data.setup("fit")
    torch.manual_seed(0)
    assert range_test(trainer, module, ramp=RAMP).lrs.tolist() == curve.lrs.tolist()


def test_data_may_be_several_loaders():
    class Both(Module):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch["one"], batch_idx) | {"rows": float(len(batch["two"][0]))}

    data = {"one": loader_of(), "two": loader_of(batch_size=4)}
    assert range_test(trainer_of(), Both(), data, ramp=RAMP, metric="rows").values.tolist() == [4.0] * 12
