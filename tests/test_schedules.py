"""Schedules: values at every edge, torch's schedulers as oracles, budgets, and the grammar of their names."""

import math
from collections.abc import Callable

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st

from decoupled import schedules

TOTAL = 40  # updates


def values(eta, steps=TOTAL):
    return [eta(step) for step in range(steps)]


# --- values at edges ------------------------------------------------------------------------------------------------

EDGES: dict[str, tuple[Callable, dict[int, float]]] = {
    "fixed": (schedules.fixed(), {0: 1, 20: 1, 40: 1, 41: 1, 10**9: 1}),
    "linear": (schedules.linear(40), {0: 1, 10: 0.75, 20: 0.5, 39: 0.025, 40: 0, 41: 0, 10**9: 0}),
    "cosine": (
        schedules.cosine(40),
        {0: 1, 10: 0.5 + math.sqrt(0.125), 20: 0.5, 30: 0.5 - math.sqrt(0.125), 40: 0, 41: 0, 10**9: 0},
    ),
    "cosine, one update": (schedules.cosine(1), {0: 1, 1: 0, 2: 0}),
    "step": (
        schedules.step_drop(0.2, [12, 24, 32]),
        {0: 1, 11: 1, 12: 0.2, 13: 0.2, 23: 0.2, 24: 0.04, 31: 0.04, 32: 0.008, 40: 0.008, 41: 0.008},
    ),
    "exponential": (schedules.exponential(0.25, 10), {0: 1, 5: 0.5, 10: 0.25, 15: 0.125, 20: 0.0625, 25: 0.03125}),
    "staircase": (
        schedules.exponential(0.25, 10, staircase=True),
        {0: 1, 9: 1, 10: 0.25, 19: 0.25, 20: 0.0625, 29: 0.0625, 30: 0.015625},
    ),
    "equal cycles": (
        schedules.warm_restarts(4, 1),
        {0: 1, 2: 0.5, 3: 0.5 - math.sqrt(0.125), 4: 1, 6: 0.5, 7: 0.5 - math.sqrt(0.125), 8: 1, 40: 1, 42: 0.5},
    ),
    "doubling cycles": (  # cycles start at 0, 2, 6, 14, 30, 62
        schedules.warm_restarts(2, 2),
        {0: 1, 1: 0.5, 2: 1, 4: 0.5, 5: 0.5 - math.sqrt(0.125), 6: 1, 10: 0.5, 14: 1, 22: 0.5, 30: 1, 46: 0.5, 62: 1},
    ),
    "doubling cycles, last update of a cycle": (
        schedules.warm_restarts(2, 2),
        {13: 0.5 * (1 + math.cos(math.pi * 7 / 8)), 29: 0.5 * (1 + math.cos(math.pi * 15 / 16))},
    ),
    "cycles of one update": (schedules.warm_restarts(1, 1), {0: 1, 1: 1, 2: 1}),
    "tripling cycles": (schedules.warm_restarts(2, 3), {0: 1, 1: 0.5, 2: 1, 5: 0.5, 8: 1, 17: 0.5, 26: 1, 53: 0.5}),
}


@pytest.mark.parametrize("name", EDGES)
def test_values_at_edges(name):
    eta, expected = EDGES[name]
    assert {step: eta(step) for step in expected} == pytest.approx(expected, rel=1e-14, abs=1e-15)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_the_end_is_exactly_zero(name):
    eta = EDGES[name][0]
    assert eta(39) > 0
    assert eta(40) == eta(41) == eta(10**12) == 0


# --- other implementations ------------------------------------------------------------------------------------------


def torch_multipliers(make, steps):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make(optimizer)
    multipliers = []
    for _ in range(steps):
        multipliers.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return multipliers


ORACLES: dict[str, tuple[Callable, Callable, int]] = {
    "cosine": (schedules.cosine(TOTAL), lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, TOTAL), TOTAL + 1),
    "restarts, t_mult 1": (
        schedules.warm_restarts(7, 1),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 7, 1),
        50,
    ),
    "restarts, t_mult 2": (
        schedules.warm_restarts(3, 2),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 3, 2),
        100,
    ),
    "step": (
        schedules.step_drop(0.1, [30, 60, 80]),
        lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [30, 60, 80], gamma=0.1),
        100,
    ),
    "linear": (
        schedules.linear(TOTAL),
        lambda o: torch.optim.lr_scheduler.LinearLR(o, start_factor=1.0, end_factor=0.0, total_iters=TOTAL),
        TOTAL + 10,
    ),
    "exponential": (
        schedules.exponential(0.3, 12),
        lambda o: torch.optim.lr_scheduler.ExponentialLR(o, gamma=0.3 ** (1 / 12)),
        50,
    ),
    "staircase": (
        schedules.exponential(0.3, 12, staircase=True),
        lambda o: torch.optim.lr_scheduler.StepLR(o, step_size=12, gamma=0.3),
        50,
    ),
}


@pytest.mark.parametrize("name", ORACLES)
def test_equals_the_scheduler_of_torch(name):
    eta, make, steps = ORACLES[name]
    assert values(eta, steps) == pytest.approx(torch_multipliers(make, steps), rel=1e-12, abs=1e-13)


@pytest.mark.parametrize(("t_0", "t_mult"), [(1, 1), (1, 2), (5, 1), (5, 2), (4, 3)])
def test_restarts_equal_the_transcription(t_0, t_mult):
    etas, lengths = reference.cosine_with_restarts(200, t_0, t_mult)
    assert values(schedules.warm_restarts(t_0, t_mult), 200) == pytest.approx(etas, rel=1e-14, abs=1e-15)
    assert [schedules.restart_cycle(step, t_0, t_mult)[1] for step in range(200)] == lengths


# --- cycles and budgets ---------------------------------------------------------------------------------------------


def test_cycles_follow_one_another_without_gap():
    cycle = schedules.parse("restarts(1, 2)", 15, 10).cycle
    for start, length in [(0, 10), (10, 20), (30, 40), (70, 80), (150, 160)]:
        assert cycle(start) == cycle(start + 1) == cycle(start + length - 1) == (start, length)
    cycle = schedules.parse("restarts(2, 1)", 6, 10).cycle
    for start in (0, 20, 40, 1000):
        assert cycle(start) == cycle(start + 1) == cycle(start + 19) == (start, 20)


@pytest.mark.parametrize("text", ["fixed", "linear", "cosine", "step(0.1, 3)", "exponential(0.5, 2)"])
def test_without_restarts_the_run_is_one_cycle(text):
    cycle = schedules.parse(text, 6, 10).cycle
    assert {cycle(step) for step in (0, 1, 59, 60, 61)} == {(0, 60)}


def test_the_cycles_of_the_paper_on_cifar():
    """T_0 = 100 and T_mult = 2 end cycles at epochs 100, 300, 700 and 1500 (391 updates each)."""
    cycle = schedules.parse("restarts(100, 2)", 1500, 391).cycle
    ends, step = [], 0
    while step < 1500 * 391:
        start, length = cycle(step)
        assert start == step
        step += length
        ends.append(step / 391)
    assert ends == [100, 300, 700, 1500]


BUDGETS = {
    "fixed": 40,
    "cosine": 41 / 2,  # the cosines of 0 .. T - 1 sum up to 1, so the multipliers to T / 2 + 1 / 2
    "linear": 41 / 2,  # T - (0 + ... + (T - 1)) / T
    "step(0.1, 3, 6)": 12 + 12 * 0.1 + 16 * 0.01,
    "staircase(0.5, 5)": 20 * (1 + 0.5),
    "exponential(0.5, 5)": (1 - 0.25) / (1 - 0.5 ** (1 / 20)),  # geometric series
    "restarts(5, 1)": 2 * 21 / 2,
    "restarts(1, 2)": 5 / 2 + 9 / 2 + 17 / 2 + 12 / 2 + sum(math.cos(math.pi * i / 32) for i in range(12)) / 2,
}


@pytest.mark.parametrize("text", BUDGETS)
def test_budget(text):
    assert math.fsum(values(schedules.parse(text, 10, 4).eta)) == pytest.approx(BUDGETS[text], rel=1e-13)


FACTORS = st.floats(1e-3, 1.0)
PLANS = st.one_of(
    st.sampled_from(["fixed", "linear", "cosine"]),
    st.builds("step({!r}, {!r}, {!r})".format, FACTORS, st.floats(0.1, 60), st.floats(0.1, 60)),
    st.builds("exponential({!r}, {!r})".format, FACTORS, st.floats(0.1, 60)),
    st.builds("staircase({!r}, {!r})".format, FACTORS, st.floats(0.1, 60)),
    st.builds("restarts({!r}, {})".format, st.floats(0.1, 60), st.integers(1, 4)),
)


@given(PLANS, st.integers(1, 50), st.integers(1, 400), st.integers(0, 40_000), st.integers(1, 2_000))
def test_within_0_and_1_and_never_rising_inside_a_cycle(text, epochs, steps_per_epoch, step, ahead):
    plan = schedules.parse(text, epochs, steps_per_epoch)
    start, length = plan.cycle(step)
    assert 0 <= plan.eta(step) <= 1
    assert plan.eta(start) == 1
    if text.startswith("restarts"):
        assert start <= step < start + length
        assert plan.cycle(start) == plan.cycle(start + length - 1) == (start, length)
        assert plan.cycle(start + length)[0] == start + length
    later = min(step + ahead, start + length - 1) if text.startswith("restarts") else step + ahead
    assert plan.eta(later) <= plan.eta(step)


# --- names ----------------------------------------------------------------------------------------------------------

NAMES = {
    "fixed": schedules.fixed(),
    "linear": schedules.linear(80),
    "cosine": schedules.cosine(80),
    "  cosine ": schedules.cosine(80),
    "step(0.1, 3, 6, 8)": schedules.step_drop(0.1, [24, 48, 64]),
    "step(.1,3)": schedules.step_drop(0.1, [24]),
    "step(1, 0.25)": schedules.step_drop(1.0, [2]),
    "step(0.1, 0.001)": schedules.step_drop(0.1, [1]),  # an edge is at the earliest at update 1
    "exponential(0.5, 2.5)": schedules.exponential(0.5, 20),
    "staircase(0.5, 2.5)": schedules.exponential(0.5, 20, staircase=True),
    "restarts(1, 2)": schedules.warm_restarts(8, 2),
    "restarts(2.5, 1)": schedules.warm_restarts(20, 1),
}


@pytest.mark.parametrize("text", NAMES)
def test_numbers_of_a_name_are_epochs(text):
    assert values(schedules.parse(text, 10, 8).eta, 100) == values(NAMES[text], 100)


KNOWN = (
    "; known: fixed, linear, cosine, step(factor, *epochs), exponential(rate, epochs), staircase(rate, epochs), "
    "restarts(t_0, t_mult)"
)
ERRORS = {
    "": "unknown schedule ''" + KNOWN,
    "cosin": "unknown schedule 'cosin'" + KNOWN,
    "Cosine": "unknown schedule 'Cosine'" + KNOWN,
    "cosine fixed": "unknown schedule 'cosine fixed'" + KNOWN,
    "step(0.1, 3": "unknown schedule 'step(0.1, 3'" + KNOWN,
    "step((0.1), 3)": "unknown schedule 'step((0.1), 3)'" + KNOWN,
    "step(a, 3)": "schedule 'step(a, 3)': its arguments must be numbers",
    "step(0.1, 3,)": "schedule 'step(0.1, 3,)': its arguments must be numbers",
    "step": "schedule 'step': step takes (factor, *epochs)",
    "step(0.1)": "schedule 'step(0.1)': step takes (factor, *epochs)",
    "exponential(0.1)": "schedule 'exponential(0.1)': exponential takes (rate, epochs)",
    "staircase(0.1, 2, 3)": "schedule 'staircase(0.1, 2, 3)': staircase takes (rate, epochs)",
    "restarts(1)": "schedule 'restarts(1)': restarts takes (t_0, t_mult)",
    "restarts": "schedule 'restarts': restarts takes (t_0, t_mult)",
    "step(0, 3)": "schedule 'step(0, 3)': its numbers must be positive and below 1e9",
    "step(0.1, -3)": "schedule 'step(0.1, -3)': its numbers must be positive and below 1e9",
    "exponential(nan, 3)": "schedule 'exponential(nan, 3)': its numbers must be positive and below 1e9",
    "restarts(inf, 2)": "schedule 'restarts(inf, 2)': its numbers must be positive and below 1e9",
    "restarts(1, 0)": "schedule 'restarts(1, 0)': its numbers must be positive and below 1e9",
    "step(1.01, 3)": "schedule 'step(1.01, 3)': a factor above 1 would lift the multiplier out of [0, 1]",
    "exponential(2, 3)": "schedule 'exponential(2, 3)': a factor above 1 would lift the multiplier out of [0, 1]",
    "staircase(2, 3)": "schedule 'staircase(2, 3)': a factor above 1 would lift the multiplier out of [0, 1]",
    "restarts(1, 1.5)": "schedule 'restarts(1, 1.5)': t_mult must be a whole number",
    "restarts(1, 0.5)": "schedule 'restarts(1, 0.5)': t_mult must be a whole number",
}


@pytest.mark.parametrize("text", ERRORS)
def test_a_bad_name_is_explained_in_one_line(text):
    with pytest.raises(ValueError) as error:
        schedules.parse(text, 10, 8)
    assert str(error.value) == ERRORS[text]


@pytest.mark.parametrize("text", ["cosine(3)", "fixed(1)", "linear(1, 2)"])
def test_a_schedule_without_numbers_takes_none(text):
    with pytest.raises(ValueError, match=r"takes \(\)$"):
        schedules.parse(text, 10, 8)
