"""The update rules and optimizers, each held against three independent proofs by one table.

Every rule of `optim.RULES` has a row in ROWS: a transcription of the paper's algorithm box, the same iterates from
`torch.optim`, and propositions or invariants. MUTATIONS says, rule by rule, which mistakes must break those proofs.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
import reference
import torch
from torch import nn

from decoupled import schedules
from decoupled.optim import RULES, normalized

# --- the problem: a noisy quadratic in five parameters, 90 steps ----------------------------------------------------

STEPS, N, ALPHA, LAM = 90, 5, 0.05, 0.03
_random = np.random.default_rng(1711)
_root = _random.normal(size=(N, N))
CURVATURE = _root @ _root.T / N + np.diag([0.01, 0.1, 1.0, 2.0, 5.0])
NOISE = _random.normal(size=(STEPS, N))
START = _random.normal(size=N) * 3


def gradient(t, x):
    """Gradient of 0.5 x' CURVATURE x + x' NOISE[t - 1]; x [N] or [R, N]."""
    return np.asarray(x) @ CURVATURE + NOISE[t - 1]


def plan_of_the_package(setting):
    """(etas, lambdas) from the package: one cosine with raw decay, or restarts with normalized decay."""
    plan = schedules.parse({"cosine": "cosine", "restarts": "restarts(1, 2)"}[setting], 9, 10)
    lambdas = [normalized(0.1, b=100, B=1000, T=plan.cycle(step)[1] / 10) for step in range(STEPS)]
    return [plan.eta(step) for step in range(STEPS)], [LAM] * STEPS if setting == "cosine" else lambdas


def plan_of_the_reference(setting):
    """The same plan from the transcription."""
    if setting == "cosine":
        return reference.cosine_with_restarts(STEPS, STEPS, 1)[0], [LAM] * STEPS
    etas, lengths = reference.cosine_with_restarts(STEPS, 10, 2)
    return etas, [reference.normalized_decay(0.1, 100, 1000, length / 10) for length in lengths]


def follow(update, etas, lambdas, *, runs=(), alpha=ALPHA, **hyper):
    """The iterates [STEPS, N] of a rule from START; [STEPS, R, N] with runs=(R,)."""
    theta, iterates = torch.tensor(START).expand(*runs, N), []
    state: dict[str, torch.Tensor] = {}
    for t, (eta, lam) in enumerate(zip(etas, lambdas, strict=True), 1):
        g = torch.tensor(gradient(t, theta.numpy()))
        theta, state = update(theta, g, state, t, alpha=alpha, eta=eta, lam=lam, **hyper)
        iterates.append(theta)
    return torch.stack(iterates)


def follow_torch(optimizer_class, before_step, etas, lambdas, **options):
    """The iterates [STEPS, N] of a torch optimizer under LambdaLR; before_step(p, group, eta, lam) brings the decay."""
    p = nn.Parameter(torch.tensor(START))
    optimizer = optimizer_class([p], lr=ALPHA, **options)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: etas[min(step, STEPS - 1)])
    iterates = []
    for t, (eta, lam) in enumerate(zip(etas, lambdas, strict=True), 1):
        p.grad = torch.tensor(gradient(t, p.detach().numpy()))
        with torch.no_grad():
            before_step(p, optimizer.param_groups[0], eta, lam)
        optimizer.step()
        scheduler.step()
        iterates.append(p.detach().clone())
    return torch.stack(iterates)


def assert_equal(iterates, expected):
    """Agreement to 1e-12 of the largest coordinate, at every step."""
    expected = torch.as_tensor(expected)
    assert (iterates - expected).abs().max() <= 1e-12 * expected.abs().max()


# --- torch.optim, decay brought in by hand where torch has another convention or none -------------------------------


def penalty(p, group, eta, lam):
    group["weight_decay"] = lam


def divided_by_alpha(p, group, eta, lam):
    group["weight_decay"] = lam / ALPHA


def shrink_first(p, group, eta, lam):
    p.mul_(1 - eta * lam)


def penalty_with_rate_in_gradient(p, group, eta, lam):
    group["lr"], group["weight_decay"] = 1.0, eta * ALPHA * lam
    p.grad.mul_(eta * ALPHA)


def shrink_first_with_rate_in_gradient(p, group, eta, lam):
    group["lr"] = 1.0
    p.grad.mul_(eta * ALPHA)
    p.mul_(1 - eta * lam)


# --- propositions and invariants: each takes the rule under test and raises AssertionError --------------------------


def zero_gradient_leaves_the_decay(update, **hyper):
    theta, zero = torch.tensor(START), torch.zeros(N, dtype=torch.float64)
    for alpha in (0.0, 1e-3, 7.0):
        after, _ = update(theta, zero, {}, 1, alpha=alpha, eta=0.5, lam=0.1, **hyper)
        torch.testing.assert_close(after, theta * 0.95, rtol=1e-15, atol=0)


def proposition_1(l2, decoupled):
    """SGD without momentum: L2 with lambda' is decoupled decay with lambda = alpha lambda'."""
    etas, lambdas = plan_of_the_package("cosine")
    expected = follow(l2, etas, [lam / ALPHA for lam in lambdas], beta=0.0)
    assert_equal(follow(decoupled, etas, lambdas, beta=0.0), expected)


def distance_of_the_best_penalty(l2, decoupled, **hyper):
    """How far the best of 400 L2 coefficients stays from decoupled decay, relative to what that decay does."""
    etas, lambdas = plan_of_the_package("cosine")
    candidates = torch.tensor([LAM / ALPHA, *np.geomspace(1e-5, 1e2, 399)], dtype=torch.float64)
    wanted = follow(decoupled, etas, lambdas, **hyper)
    undecayed = follow(decoupled, etas, [0.0] * STEPS, **hyper)
    penalized = follow(l2, etas, [candidates[:, None]] * STEPS, runs=(400,), **hyper)
    return ((penalized - wanted[:, None]).square().sum((0, 2)).min() / (wanted - undecayed).square().sum()).sqrt()


def proposition_2(l2):
    """No scalar lambda' makes Adam with L2 follow AdamW; the same search finds the one of momentum-free SGD."""
    sgd, sgdw = RULES["sgd"].update, RULES["sgdw"].update
    assert distance_of_the_best_penalty(sgd, sgdw, beta=0.0) < 1e-12
    assert distance_of_the_best_penalty(l2, RULES["adamw"].update, beta1=0.0, beta2=0.95) > 0.5


def proposition_3(l2, decoupled):
    """Fixed preconditioner 1 / s: decay lambda is an L2 penalty whose coefficient is (lambda / alpha) s, by coordinate.

    An eps of 2^80 s swamps the second moment, so that alpha 2^80 / (sqrt(v_hat) + eps) is alpha / s.
    """
    s, huge = torch.tensor([0.1, 0.5, 1.0, 2.0, 10.0]).double(), 2.0**80
    etas, lambdas = plan_of_the_package("restarts")
    fixed = {"alpha": huge * ALPHA, "eps": huge * s, "beta1": 0.0}
    penalized = follow(l2, etas, [lam / ALPHA * s for lam in lambdas], **fixed)
    assert_equal(follow(decoupled, etas, lambdas, **fixed), penalized)
    assert (penalized - follow(l2, etas, [lam / ALPHA for lam in lambdas], **fixed)).abs().max() > 0.01


def rate_enters_the_buffer(raw, inside):
    """Algorithm 1 keeps eta alpha inside the buffer: no difference for constant eta, another path under cosine."""
    etas, lambdas = plan_of_the_package("cosine")
    assert_equal(follow(inside, [0.5] * STEPS, lambdas), follow(raw, [0.5] * STEPS, lambdas))
    assert (follow(inside, etas, lambdas) - follow(raw, etas, lambdas)).abs().max() > 0.1


# --- the table ------------------------------------------------------------------------------------------------------

SGD = {"beta": 0.9}
ADAM = {"beta1": 0.8, "beta2": 0.95, "eps": 1e-2}  # an eps that shows where it stands
START_AND_SGD = {"x": START.tolist(), "gradient": gradient, "alpha": ALPHA, "beta1": 0.9}
START_AND_ADAM = {"x": START.tolist(), "gradient": gradient, "alpha": ALPHA, **ADAM}
TORCH_SGD = partial(follow_torch, torch.optim.SGD, momentum=0.9)
TORCH_ADAM = {"betas": (0.8, 0.95), "eps": 1e-2}


class Row(NamedTuple):
    """The three proofs of one rule."""

    hyper: dict[str, float]
    transcription: Callable  # (etas=, lambdas=) -> list of iterates
    torch_form: Callable  # (etas=, lambdas=) -> iterates
    invariants: dict[str, tuple[Callable, str]]  # name -> (check of the rule, a mutation that must break it)


ROWS = {
    "sgd": Row(
        SGD,
        partial(reference.raw_buffer, **START_AND_SGD, decoupled=False),
        partial(TORCH_SGD, before_step=penalty),
        {"P1": (lambda u: proposition_1(u, RULES["sgdw"].update), "decay of the wrong sign")},
    ),
    "sgdw": Row(
        SGD,
        partial(reference.raw_buffer, **START_AND_SGD, decoupled=True),
        partial(TORCH_SGD, before_step=shrink_first),
        {
            "P1": (lambda u: proposition_1(RULES["sgd"].update, u), "decay after the step"),
            "zero gradient": (zero_gradient_leaves_the_decay, "decay multiplied by alpha"),
        },
    ),
    "adam": Row(
        ADAM,
        partial(reference.algorithm_2, **START_AND_ADAM, decoupled=False),
        partial(follow_torch, torch.optim.Adam, penalty, **TORCH_ADAM),
        {
            "P2": (proposition_2, "decay after the moments"),
            "P3": (lambda u: proposition_3(u, RULES["adamw"].update), "decay after the moments"),
        },
    ),
    "adamw": Row(
        ADAM,
        partial(reference.algorithm_2, **START_AND_ADAM, decoupled=True),
        partial(follow_torch, torch.optim.AdamW, divided_by_alpha, **TORCH_ADAM),
        {
            "P3": (lambda u: proposition_3(RULES["adam"].update, u), "decay without eta"),
            "zero gradient": (zero_gradient_leaves_the_decay, "decay in the gradient"),
        },
    ),
    "sgd_algorithm1": Row(
        SGD,
        partial(reference.algorithm_1, **START_AND_SGD, decoupled=False),
        partial(TORCH_SGD, before_step=penalty_with_rate_in_gradient),
        {
            "P1": (lambda u: proposition_1(u, RULES["sgdw_algorithm1"].update), "decay multiplied by alpha"),
            "buffer": (lambda u: rate_enters_the_buffer(RULES["sgd"].update, u), "rate on the other side"),
        },
    ),
    "sgdw_algorithm1": Row(
        SGD,
        partial(reference.algorithm_1, **START_AND_SGD, decoupled=True),
        partial(TORCH_SGD, before_step=shrink_first_with_rate_in_gradient),
        {
            "P1": (lambda u: proposition_1(RULES["sgd_algorithm1"].update, u), "decay without eta"),
            "zero gradient": (zero_gradient_leaves_the_decay, "decay in the gradient"),
            "buffer": (lambda u: rate_enters_the_buffer(RULES["sgdw"].update, u), "rate on the other side"),
        },
    ),
}
EVERY = ("decay of the wrong sign", "decay multiplied by alpha", "step without eta")
DECOUPLED = ("decay without eta", "decay after the step", "decay in the gradient")
BUFFER = ("rate on the other side", "momentum dampened", "Nesterov momentum")
MOMENTS = ("m not corrected", "v not corrected", "eps inside the root", "eps before the correction")
MUTATIONS = {
    "sgd": (*EVERY, *BUFFER, "decay after momentum"),
    "sgdw": (*EVERY, *BUFFER, *DECOUPLED),
    "adam": (*EVERY, *MOMENTS, "decay after the moments", "decay in m only"),
    "adamw": (*EVERY, *MOMENTS, *DECOUPLED),
    "sgd_algorithm1": (*EVERY, *BUFFER, "decay after momentum"),
    "sgdw_algorithm1": (*EVERY, *BUFFER, *DECOUPLED),
}
if not set(RULES) == set(ROWS) == set(MUTATIONS):
    raise LookupError(f"every rule needs a row in ROWS and in MUTATIONS: {set(RULES) ^ set(ROWS) ^ set(MUTATIONS)}")


def agrees_with_transcription(name, update, setting):
    etas, lambdas = plan_of_the_reference(setting)
    expected = ROWS[name].transcription(etas=etas, lambdas=lambdas)
    assert_equal(follow(update, *plan_of_the_package(setting), **ROWS[name].hyper), expected)


def agrees_with_torch(name, update, setting):
    etas, lambdas = plan_of_the_package(setting)
    expected = ROWS[name].torch_form(etas=etas, lambdas=lambdas)
    assert_equal(follow(update, etas, lambdas, **ROWS[name].hyper), expected)


COMPARISONS = [agrees_with_transcription, agrees_with_torch]


@pytest.mark.parametrize("setting", ["cosine", "restarts"])
@pytest.mark.parametrize("agrees", COMPARISONS)
@pytest.mark.parametrize("name", RULES)
def test_iterates(name, agrees, setting):
    agrees(name, RULES[name].update, setting)


@pytest.mark.parametrize(("name", "invariant"), [(name, i) for name, row in ROWS.items() for i in row.invariants])
def test_invariant(name, invariant):
    check, mutation = ROWS[name].invariants[invariant]
    check(RULES[name].update)
    with pytest.raises(AssertionError):
        check(mutant(name, mutation))


# --- mutations: the rules written once more with a place for one mistake --------------------------------------------


def mutant(name, fault=None):
    """The rule `name` with one mistake, or without any if `fault` is None."""
    return partial(mutant_adam if "adam" in name else mutant_sgd, name, fault)


def mutant_decay(fault, eta, alpha, lam):
    factor = {"decay of the wrong sign": -1, "decay multiplied by alpha": alpha, "decay without eta": 1 / eta}
    return factor.get(fault, 1) * lam


def finish(name, fault, theta, step, eta, lam):
    if RULES[name].decay == "l2" or fault == "decay in the gradient":
        return theta - step
    return theta - step - eta * lam * (theta - step if fault == "decay after the step" else theta)


def mutant_sgd(name, fault, theta, g, state, t, *, alpha, eta, lam, beta=0.9):
    lam, rate = mutant_decay(fault, eta, alpha, lam), (1 if fault == "step without eta" else eta) * alpha
    late = fault == "decay after momentum"
    if fault == "decay in the gradient" or (RULES[name].decay == "l2" and not late):
        g = g + lam * theta
    inside = ("algorithm1" in name) != (fault == "rate on the other side")
    term = (rate * g if inside else g) * (1 - beta if fault == "momentum dampened" else 1)
    m = beta * state["m"] + term if state else term
    step = (term + beta * m if fault == "Nesterov momentum" else m) * (1 if inside else rate)
    step = step + rate * lam * theta if late else step
    return finish(name, fault, theta, step, eta, lam), {"m": m}


def mutant_adam(name, fault, theta, g, state, t, *, alpha, eta, lam, beta1=0.9, beta2=0.999, eps=1e-8):
    lam, rate = mutant_decay(fault, eta, alpha, lam), (1 if fault == "step without eta" else eta) * alpha
    late, raw = fault == "decay after the moments", g
    if fault == "decay in the gradient" or (RULES[name].decay == "l2" and not late):
        g = g + lam * theta
    squared = (raw if fault == "decay in m only" else g) ** 2
    m = beta1 * state.get("m", 0.0) + (1 - beta1) * g
    v = beta2 * state.get("v", 0.0) + (1 - beta2) * squared
    m_hat = m / (1 if fault == "m not corrected" else 1 - beta1**t)
    correction = 1 if fault == "v not corrected" else 1 - beta2**t
    if fault == "eps inside the root":
        root = (v / correction + eps).sqrt()
    elif fault == "eps before the correction":
        root = (v.sqrt() + eps) / math.sqrt(correction)
    else:
        root = (v / correction).sqrt() + eps
    step = rate * m_hat / root
    step = step + rate * lam * theta if late else step
    return finish(name, fault, theta, step, eta, lam), {"m": m, "v": v}


@pytest.mark.parametrize("setting", ["cosine", "restarts"])
@pytest.mark.parametrize("agrees", COMPARISONS)
@pytest.mark.parametrize(("name", "fault"), [(name, fault) for name in RULES for fault in (None, *MUTATIONS[name])])
def test_mutation_is_found(name, fault, agrees, setting):
    if fault is None:  # the starting point of the mutations is the rule itself
        agrees(name, mutant(name), setting)
    else:
        with pytest.raises(AssertionError):
            agrees(name, mutant(name, fault), setting)


# One step by hand. theta = (2, -3), alpha = 0.1, eta = 0.5, lam = 0.02; (0.3, -0.5) is g, or g + lam theta under L2.
# SGD, beta = 0.9, m before = (0.1, -0.3):
#   raw buffer   m = 0.09 + 0.3 = 0.39            and -0.27 - 0.5 = -0.77          step 0.05 m = (0.0195, -0.0385)
#   Algorithm 1  m = 0.09 + 0.05 * 0.3 = 0.105    and -0.27 - 0.025 = -0.295       step m
# Adam, t = 2, beta1 = 0.8, beta2 = 0.6, eps = 0.25, m before = (0.15, -0.325), v before = (0.54, 0.9):
#   m = 0.12 + 0.06 = 0.18 and -0.26 - 0.1 = -0.36;  over 1 - 0.64 = 0.36:         m_hat = (0.5, -1)
#   v = 0.324 + 0.4 * 0.09 = 0.36 and 0.54 + 0.4 * 0.25 = 0.64;  over 0.64:        v_hat = (0.5625, 1)
#   0.05 * 0.5 / (0.75 + 0.25) = 0.025 and 0.05 * -1 / (1 + 0.25) = -0.04:         step (0.025, -0.04)
# Decoupled decay: eta lam theta = 0.01 * (2, -3) = (0.02, -0.03)
GOLDEN = {
    "sgd": ([1.9805, -2.9615], {"m": [0.39, -0.77]}),
    "sgdw": ([1.9605, -2.9315], {"m": [0.39, -0.77]}),
    "adam": ([1.975, -2.96], {"m": [0.18, -0.36], "v": [0.36, 0.64]}),
    "adamw": ([1.955, -2.93], {"m": [0.18, -0.36], "v": [0.36, 0.64]}),
    "sgd_algorithm1": ([1.895, -2.705], {"m": [0.105, -0.295]}),
    "sgdw_algorithm1": ([1.875, -2.675], {"m": [0.105, -0.295]}),
}


@pytest.mark.parametrize("name", RULES)
def test_golden_step(name, float64):
    theta, g, lam = torch.tensor([2.0, -3.0]), torch.tensor([0.3, -0.5]), 0.02
    if RULES[name].decay == "l2":
        g = g - lam * theta
    adam = {"beta1": 0.8, "beta2": 0.6, "eps": 0.25}
    state = {"m": torch.tensor([0.15, -0.325]), "v": torch.tensor([0.54, 0.9])}
    if "sgd" in name:
        adam, state = {"beta": 0.9}, {"m": torch.tensor([0.1, -0.3])}
    before = [x.clone() for x in (theta, g, *state.values())]
    after, new = RULES[name].update(theta, g, state, 2, alpha=0.1, eta=0.5, lam=lam, **adam)
    why = f"one step of {name} is not the one worked out by hand above: the rule changed, or the comment is wrong"
    assert after.tolist() == pytest.approx(GOLDEN[name][0], rel=1e-14), why
    assert tuple(new) == RULES[name].buffers, why
    for buffer, value in GOLDEN[name][1].items():
        assert new[buffer].tolist() == pytest.approx(value, rel=1e-14), why
    for x, old in zip((theta, g, *state.values()), before, strict=True):
        assert torch.equal(x, old), "a rule writes nothing in place"


@pytest.mark.parametrize("name", RULES)
def test_stacked_runs_equal_separate_runs_to_the_bit(name, float64):
    hyper = {"alpha": [0.1, 0.02, 0.3], "lam": [0.03, 0.1, 0.0], "eta": [1.0, 0.3, 0.7], "beta": [0.9, 0.5, 0.0]}
    if "adam" in name:
        hyper |= {"beta1": hyper.pop("beta"), "beta2": [0.999, 0.9, 0.5], "eps": [1e-8, 1e-3, 0.1]}
    theta, gradients, update = torch.randn(3, 4, 2), torch.randn(20, 3, 4, 2), RULES[name].update
    stacked: torch.Tensor = theta
    state: dict[str, torch.Tensor] = {}
    for t, g in enumerate(gradients, 1):
        stacked, state = update(stacked, g, state, t, **{key: torch.tensor(x) for key, x in hyper.items()})
    for r in range(3):
        single, state = theta[r], {}
        for t, g in enumerate(gradients[:, r], 1):
            single, state = update(single, g, state, t, **{key: x[r] for key, x in hyper.items()})
        assert torch.equal(stacked[r], single)
