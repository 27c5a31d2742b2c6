"""Schedules: their formulas, PyTorch's rates over many steps, and going on exactly after a pause."""

import math
import pickle

import numpy as np
import pytest

import fastseq as fs
from fastseq import nn, optim

MAKERS = {
    "step": lambda o: optim.StepLR(o, step_size=7, gamma=0.3),
    "cosine": lambda o: optim.CosineDecay(o, total_steps=30, floor=0.05),
    "warmup": lambda o: optim.WarmupCosine(o, total_steps=40, warmup_steps=10, floor=0.1),
    "inverse": lambda o: optim.InverseSqrt(o, warmup_steps=8),
}


def optimizer(*rates):
    """An optimiser of ours with a group for each rate."""
    return optim.SGD([{"params": [nn.Parameter(np.ones(2))], "lr": rate} for rate in rates], lr=1.0)


def rates(schedule, steps):
    """The first group's rate of each of `steps` steps."""
    found = []
    for _ in range(steps):
        found.append(schedule.optimizer.param_groups[0]["lr"])
        schedule.optimizer.step()
        schedule.step()
    return found


def test_the_first_step_and_those_after_the_end():
    assert rates(optim.WarmupCosine(optimizer(2.0), 20, 4), 5) == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates(optim.InverseSqrt(optimizer(2.0), 4), 16)[-1] == 1.0
    assert rates(optim.InverseSqrt(optimizer(2.0), 1), 4) == pytest.approx([2.0, math.sqrt(2), 2 / math.sqrt(3), 1.0])
    assert rates(optim.CosineDecay(optimizer(2.0), 3, floor=0.25), 9)[3:] == [0.5] * 6
    assert rates(optim.WarmupCosine(optimizer(2.0), 5, 0, floor=0.25), 7) == rates(optim.CosineDecay(optimizer(2.0), 5, floor=0.25), 7)


def test_inverse_sqrt_is_the_transformer_papers():
    width, warmup = 512, 40
    found = rates(optim.InverseSqrt(optimizer((width * warmup) ** -0.5), warmup), 200)
    want = [width**-0.5 * min(n**-0.5, n * warmup**-1.5) for n in range(1, 201)]
    np.testing.assert_allclose(found, want, rtol=1e-12)


def test_pytorch_has_the_same_rates():
    torch = pytest.importorskip("torch")
    scheduler = torch.optim.lr_scheduler
    for ours, theirs in (
        (MAKERS["step"], lambda o: scheduler.StepLR(o, 7, 0.3)),
        (MAKERS["cosine"], lambda o: scheduler.CosineAnnealingLR(o, 30, eta_min=0.05 * 0.8)),
    ):
        other = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.8)
        schedule, want = theirs(other), []
        for _ in range(31):
            want.append(other.param_groups[0]["lr"])
            other.step()
            schedule.step()
        np.testing.assert_allclose(rates(ours(optimizer(0.8)), 31), want, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("threshold_mode", ["rel", "abs"])
@pytest.mark.parametrize(("patience", "cooldown", "min_lr"), [(0, 0, 0.0), (2, 0, 0.01), (1, 3, 0.2)])
def test_pytorch_reduces_at_the_same_figures(mode, threshold_mode, patience, cooldown, min_lr):
    torch = pytest.importorskip("torch")
    options = {"mode": mode, "factor": 0.5, "patience": patience, "threshold": 0.03, "threshold_mode": threshold_mode, "cooldown": cooldown, "min_lr": min_lr}
    mine, other = optimizer(1.0), torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=1.0)
    schedule, want = optim.ReduceOnPlateau(mine, **options), torch.optim.lr_scheduler.ReduceLROnPlateau(other, **options)
    rng = np.random.default_rng(0)
    for step in range(60):
        figure = math.nan if step == 20 else 3 + math.exp((-1 if mode == "min" else 1) * step / 30) + 0.2 * rng.standard_normal()
        schedule.step(np.float64(figure))
        want.step(figure)
        assert mine.param_groups[0]["lr"] == pytest.approx(other.param_groups[0]["lr"], rel=1e-12, abs=2e-8)  # theirs makes no step below 1e-8
        assert schedule.best == want.best
    assert mine.param_groups[0]["lr"] < 1


def test_a_rate_below_min_lr_is_not_raised():
    mine = optimizer(0.001)
    schedule = optim.ReduceOnPlateau(mine, patience=0, min_lr=0.01)
    schedule.step(1.0)
    schedule.step(1.0)
    assert mine.param_groups[0]["lr"] == 0.001


def test_each_group_keeps_its_share():
    mine = optimizer(1.0, 0.1)
    schedule = optim.StepLR(mine, 1, 0.5)
    schedule.step()
    assert [g["lr"] for g in mine.param_groups] == [0.5, 0.05]
    mine.add_param_group({"params": [nn.Parameter(np.ones(2))]})
    with pytest.raises(ValueError, match="optimizer: expected 2 parameter groups, as the schedule knows, got 3"):
        schedule.step()
    assert schedule.steps == 1


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("order", [("optimizer", "schedule"), ("schedule", "optimizer")])
def test_going_on_from_a_state_gives_the_same_rates(name, order):
    whole = rates(MAKERS[name](optimizer(0.7)), 50)
    first = MAKERS[name](optimizer(0.7))
    assert rates(first, 17) == whole[:17]
    state = pickle.loads(pickle.dumps({"optimizer": first.optimizer.state_dict(), "schedule": first.state_dict()}))
    second = MAKERS[name](optimizer(0.7))
    for part in order:
        (second if part == "schedule" else second.optimizer).load_state_dict(state[part])
    assert rates(second, 33) == whole[17:]
    # and a schedule made over a restored optimiser, whose rate has fallen already
    third = optimizer(0.7)
    third.load_state_dict(state["optimizer"])
    third = MAKERS[name](third)
    third.load_state_dict(state["schedule"])
    assert rates(third, 33) == whole[17:]


def test_a_plateau_goes_on_from_a_state():
    def make():
        return optim.ReduceOnPlateau(optimizer(1.0), factor=0.5, patience=1, cooldown=2)

    figures = [3, 2, 2, 2, 2, 2, 2, 2, 1, 2, 2, 2, 2]
    whole, first, second = make(), make(), make()
    for figure in figures:
        whole.step(figure)
    for figure in figures[:4]:
        first.step(figure)
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.load_state_dict(first.state_dict())
    for figure in figures[4:]:
        second.step(figure)
    assert second.state_dict() == whole.state_dict()
    assert second.optimizer.param_groups[0]["lr"] == whole.optimizer.param_groups[0]["lr"] == 0.125


def test_a_state_that_does_not_fit_changes_nothing():
    schedule = MAKERS["cosine"](optimizer(0.7))
    schedule.step()
    before, rate = schedule.state_dict(), schedule.optimizer.param_groups[0]["lr"]
    for state, error, message in (
        ([], TypeError, "state: expected a mapping, got list"),
        ({"steps": 3}, ValueError, "state: expected steps, base_rates, got none of base_rates"),
        ({"steps": 3, "base_rates": [1.0, 1.0]}, ValueError, "optimizer: expected 2 parameter groups, as the schedule knows, got 1"),
    ):
        with pytest.raises(error, match=message):
            schedule.load_state_dict(state)
        assert schedule.state_dict() == before
        assert schedule.optimizer.param_groups[0]["lr"] == rate


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda o: optim.StepLR(o, 0), ValueError, "step_size: expected at least 1, got 0"),
        (lambda o: optim.StepLR(o, 1.5), TypeError, "step_size: expected an integer, got float"),
        (lambda o: optim.StepLR(o, 1, -1), ValueError, "gamma: expected at least"),
        (lambda o: optim.CosineDecay(o, 0), ValueError, "total_steps: expected at least 1, got 0"),
        (lambda o: optim.CosineDecay(o, 3, floor="0"), TypeError, "floor: expected a number, got str"),
        (lambda o: optim.WarmupCosine(o, 3, 3), ValueError, "warmup_steps: expected fewer than the 3 of total_steps, got 3"),
        (lambda o: optim.InverseSqrt(o, 0), ValueError, "warmup_steps: expected at least 1, got 0"),
        (lambda o: optim.InverseSqrt(o.param_groups, 1), TypeError, "optimizer: expected an Optimizer, got list"),
        (lambda o: optim.ReduceOnPlateau(o, mode="up"), ValueError, "mode: expected 'min' or 'max', got 'up'"),
        (lambda o: optim.ReduceOnPlateau(o, threshold_mode="x"), ValueError, "threshold_mode: expected 'rel' or 'abs', got 'x'"),
        (lambda o: optim.ReduceOnPlateau(o, factor=1.0), ValueError, "factor: expected less than 1, got 1.0"),
        (lambda o: optim.ReduceOnPlateau(o, patience=-1), ValueError, "patience: expected at least 0, got -1"),
    ],
)
def test_refused(make, error, message):
    mine = optimizer(1.0)
    with pytest.raises(error, match=message):
        make(mine)
    assert mine.param_groups[0]["lr"] == 1.0


def test_a_schedule_of_ones_own():
    class Triangle(optim.Schedule):
        def factor(self, steps):
            return 1 - abs(steps - 5) / 5

    assert rates(Triangle(optimizer(1.0)), 4) == pytest.approx([0, 0.2, 0.4, 0.6])
    with pytest.raises(NotImplementedError, match="Schedule does not define factor"):
        fs.optim.Schedule(optimizer(1.0))
