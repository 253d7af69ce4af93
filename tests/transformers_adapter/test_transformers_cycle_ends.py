"""At a cycle's end, once: snapshots of the net that was trained until then, and an end of the training if wanted."""

import copy

import pytest
import torch
from small_transformers import SCHEDULE, gpt2, scheduled, text_rows, trainer_of
from transformers import TrainerCallback

import cyclr
from cyclr.torch import Ensemble, Snapshots
from cyclr.transformers import AtCycleEnds

LENGTH = SCHEDULE.length


class Weights(TrainerCallback):
    """The weights after each update, by its number."""

    def __init__(self):
        self.after = {}

    def on_step_end(self, args, state, control, **kwargs):
        self.after[state.global_step] = copy.deepcopy(kwargs["model"].state_dict())


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_snapshot_is_the_net_after_the_update_that_completes_the_cycle(tmp_path, accumulation):
    model, weights, called = gpt2(), Weights(), []
    snapshots = Snapshots(tmp_path / "snapshots", SCHEDULE)
    callbacks = [weights, AtCycleEnds(snapshots, lambda step, net: called.append(step))]
    options = {"gradient_accumulation_steps": accumulation, "max_steps": 2 * LENGTH + 3}
    trainer_of(tmp_path, model, optimizers=scheduled(model)[0], callbacks=callbacks, **options).train()
    assert called == [LENGTH, 2 * LENGTH]
    ensemble = Ensemble(tmp_path / "snapshots", model)
    for member in ensemble.members:
        assert all(
            torch.equal(each, weights.after[member.step][name]) for name, each in ensemble._tensors(member).items()
        )


def test_the_ensemble_of_a_language_model_gives_the_mean_of_the_members_probabilities(tmp_path):
    model = gpt2()
    callbacks = [AtCycleEnds(Snapshots(tmp_path / "snapshots", SCHEDULE))]
    trainer_of(tmp_path, model, optimizers=scheduled(model)[0], callbacks=callbacks, max_steps=2 * LENGTH).train()
    rows = torch.stack([row["input_ids"] for row in text_rows(4)])
    ensemble = Ensemble(tmp_path / "snapshots", model)
    found = ensemble.probabilities([{"input_ids": rows}], predict=lambda model, batch: model(**batch).logits)
    want = []
    for member in ensemble.members:
        other = gpt2(seed=1).eval()
        other.load_state_dict(ensemble._tensors(member), strict=False)
        other.tie_weights()
        with torch.no_grad():
            want.append(other(rows).logits.softmax(-1))
    torch.testing.assert_close(found, torch.stack(want).mean(0))


def test_stop_ends_the_training_at_the_cycles_end(tmp_path):
    model = gpt2()
    callbacks = [AtCycleEnds(stop=lambda step, net: step >= LENGTH)]
    trainer = trainer_of(tmp_path, model, optimizers=scheduled(model)[0], callbacks=callbacks, max_steps=40)
    trainer.train()
    assert trainer.state.global_step == LENGTH


def test_without_a_scheduler_of_ours_it_asks_for_the_schedule(tmp_path):
    with pytest.raises(ValueError, match=r"no cyclr\.torch\.ScheduleLR .*AtCycleEnds\(schedule=\.\.\.\)"):
        trainer_of(tmp_path, gpt2(), callbacks=[AtCycleEnds()], max_steps=2).train()
    called = []
    ends = AtCycleEnds(lambda step, net: called.append(step), schedule=cyclr.triangular(0.001, 0.002, stepsize=1))
    trainer_of(tmp_path, gpt2(), callbacks=[ends], max_steps=5).train()
    assert called == [2, 4]


def test_a_callback_serves_a_second_training(tmp_path):
    called = []
    ends = AtCycleEnds(lambda step, model: called.append(step))
    for _ in range(2):
        model = gpt2()
        trainer_of(tmp_path, model, optimizers=scheduled(model)[0], callbacks=[ends], max_steps=LENGTH).train()
    assert called == [LENGTH, LENGTH]
