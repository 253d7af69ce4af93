"""After a range test of the Trainer nothing was touched, however it ended."""

import pytest
from small_transformers import RAMP, SCHEDULE, Spy, gpt2, same, scheduled, state_of, trainer_of, weights

from cyclr.transformers import RangeTest, range_test


def poison(trainer, at, trouble):
    """Let the loss of this batch, counted from now, be NaN or an exception."""
    original, calls = trainer.compute_loss, []

    def compute_loss(*args, **kwargs):
        calls.append(None)
        loss = original(*args, **kwargs)
        if len(calls) - 1 == at:
            if trouble is not None:
                raise trouble
            return loss * float("nan")
        return loss

    trainer.compute_loss = compute_loss


TROUBLES = [(moment, None) for moment in ("fresh", "given", "trained", "created")]
TROUBLES += [("fresh", RuntimeError("boom")), ("trained", KeyboardInterrupt()), ("created", "nan"), ("given", "nan")]


@pytest.mark.parametrize(("moment", "trouble"), TROUBLES)
def test_a_range_test_leaves_no_trace(tmp_path, moment, trouble):
    model, spy = gpt2(), Spy()
    optimizers = scheduled(model)[0] if moment in ("given", "trained") else (None, None)
    trainer = trainer_of(
        tmp_path, model, optimizers=optimizers, callbacks=[spy], max_steps=3, gradient_accumulation_steps=2
    )
    if moment in ("trained", "created"):
        trainer.train()
    if trouble is not None:
        poison(trainer, 5, None if trouble == "nan" else trouble)
    before, calls, files = state_of(trainer), list(spy.calls), sorted(tmp_path.rglob("*"))
    if isinstance(trouble, BaseException):
        with pytest.raises(type(trouble)):
            range_test(trainer, ramp=RAMP)
    else:
        assert range_test(trainer, ramp=RAMP).stopped == ("non-finite" if trouble else None)
    assert state_of(trainer) == before
    assert spy.calls == calls
    assert sorted(tmp_path.rglob("*")) == files
    if moment in ("fresh", "given"):
        assert (trainer.optimizer, trainer.lr_scheduler) == optimizers


def test_training_after_a_range_test_goes_on_to_the_same_bits(tmp_path):
    def run(tested):
        model = gpt2()
        optimizers, rates = scheduled(model)
        trainer = trainer_of(tmp_path, model, optimizers=optimizers)
        if tested:
            range_test(trainer, ramp=RAMP)
        rates.clear()
        trainer.train()
        if tested:
            range_test(trainer, ramp=RAMP)
            del rates[10:]
        trainer.args.max_steps = 5
        trainer.train()
        return rates, weights(trainer)

    rates, wanted = run(False)
    again, reached = run(True)
    assert again == rates == [SCHEDULE(step) for step in range(15)]
    assert same(reached, wanted)


@pytest.mark.parametrize("own_scheduler", [True, False])
def test_a_range_test_inside_a_training_leaves_it_to_the_same_bits(tmp_path, own_scheduler):
    def run(tested, **options):
        model = gpt2()
        optimizers = scheduled(model)[0] if own_scheduler else (None, None)
        trainer = trainer_of(
            tmp_path, model, optimizers=optimizers, gradient_accumulation_steps=2, save_strategy="steps", save_steps=4
        )
        test = RangeTest(trainer, ramp=RAMP)
        if tested:
            trainer.add_callback(test)
        out = trainer.train(**options)
        return test, weights(trainer), out.training_loss, repr(trainer.optimizer.state_dict())

    _, *wanted = run(False)
    for options in ({}, {"resume_from_checkpoint": str(tmp_path / "checkpoint-8")}):
        test, *reached = run(True, **options)
        assert same(reached[0], wanted[0])
        assert reached[2] == wanted[2]
        assert test.curve.lrs.tolist() == [RAMP(step) for step in range(12)]
        assert test.bounds.status
    assert not options or test.curve.values[0] < 4.3  # the one that was resumed had learned something
