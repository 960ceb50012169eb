"""The converter between conventions of weight decay: its numbers in the systems' own update rules.

Each system's rule is written here after its source code, without units.py; for PyTorch it is PyTorch's own optimizer.
Two systems train on one quadratic for 50 steps of a cosine schedule, each with its own number for the decay.
"""

import itertools
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from decoupled import SGDW, AdamW
from decoupled.optim import RULES, normalized
from decoupled.schedules import cosine
from decoupled.units import CONVENTIONS, OPTIMIZERS, Conversion, as_json, as_text, convert

STEPS = 50
ETA = cosine(STEPS)
ALPHA, LAM = 0.05, 0.01
SIZES: dict[str, Any] = {"batch_size": 128, "train_size": 50_000, "epochs": 100}
BETA1, BETA2 = 0.8, 0.95
SETTINGS = [("adamw", 0.0), ("sgd", 0.0), ("sgd", 0.9)]  # optimizer, momentum
START = torch.tensor([1.5, -2.0, 0.7], dtype=torch.float64)


def gradient(theta: Tensor, t: int) -> Tensor:
    """Of a quadratic whose minimum each mini-batch moves."""
    curvature = torch.tensor([4.0, 0.3, 1.0], dtype=torch.float64)
    minimum = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)
    return curvature * (theta - minimum - torch.sin(torch.arange(1.0, 4.0, dtype=torch.float64) * t))


def follow(step: Callable[[Tensor, Tensor, int, float], Tensor]) -> Tensor:
    """All iterates of theta <- step(theta, gradient, number of the step from 1, current learning rate)."""
    theta, path = START, [START]
    for t in range(1, STEPS + 1):
        theta = step(theta, gradient(theta, t), t, ALPHA * ETA(t - 1))
        path.append(theta)
    return torch.stack(path)


def follow_torch(make: Callable[[list[Tensor]], torch.optim.Optimizer], scheduled: bool = True) -> Tensor:
    """The same for a torch optimizer; scheduled: whether a torch scheduler moves its learning rate."""
    theta = START.clone().requires_grad_()
    optimizer, path = make([theta]), [START]
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, ETA) if scheduled else None
    for t in range(1, STEPS + 1):
        theta.grad = gradient(theta.detach(), t)
        optimizer.step()
        if scheduler:
            scheduler.step()
        path.append(theta.detach().clone())
    return torch.stack(path)


# --- the systems: (number, optimizer, momentum, eps) -> iterates ------------------------------------------------------


def paper(w: float, optimizer: str, mu: float, eps: float, rule: str = "") -> Tensor:
    hyper = {"beta1": BETA1, "beta2": BETA2, "eps": eps} if optimizer == "adamw" else {"beta": mu}
    state: dict[str, Tensor] = {}

    def step(theta: Tensor, g: Tensor, t: int, lr: float) -> Tensor:
        nonlocal state
        update = RULES[rule or {"adamw": "adamw", "sgd": "sgdw"}[optimizer]].update
        theta, state = update(theta, g, state, t, alpha=ALPHA, eta=ETA(t - 1), lam=w, **hyper)
        return theta

    return follow(step)


def released_code(w: float, optimizer: str, mu: float, eps: float) -> Tensor:
    """Normalized decay as the paper's code divides it, here with the fractional number of batches of the formula."""
    batches = SIZES["train_size"] / SIZES["batch_size"]
    return paper(w / math.sqrt(batches * SIZES["epochs"]), optimizer, mu, eps)


def pytorch(w: float, optimizer: str, mu: float, eps: float) -> Tensor:
    if optimizer == "adamw":
        return follow_torch(
            lambda p: torch.optim.AdamW(p, lr=ALPHA, betas=(BETA1, BETA2), eps=eps, weight_decay=w, foreach=False)
        )
    return follow_torch(lambda p: torch.optim.SGD(p, lr=ALPHA, momentum=mu, weight_decay=w, foreach=False))


def plain_adam(eps: float) -> Callable[[Tensor, int], Tensor]:
    """Adam's direction, to be multiplied by the learning rate."""
    m, v = torch.zeros_like(START), torch.zeros_like(START)

    def direction(g: Tensor, t: int) -> Tensor:
        nonlocal m, v
        m, v = BETA1 * m + (1 - BETA1) * g, BETA2 * v + (1 - BETA2) * g**2
        return m / (1 - BETA1**t) / ((v / (1 - BETA2**t)).sqrt() + eps)

    return direction


def raw_buffer(mu: float) -> Callable[[Tensor, int], Tensor]:
    buffer = torch.zeros_like(START)

    def direction(g: Tensor, t: int) -> Tensor:
        nonlocal buffer
        buffer = mu * buffer + g
        return buffer

    return direction


def direction_of(optimizer: str, mu: float, eps: float) -> Callable[[Tensor, int], Tensor]:
    return plain_adam(eps) if optimizer == "adamw" else raw_buffer(mu)


def optax(w: float, optimizer: str, mu: float, eps: float) -> Tensor:
    """scale_by_adam or trace, then add_decayed_weights, then the learning rate; added to the parameters."""
    direction = direction_of(optimizer, mu, eps)
    return follow(lambda theta, g, t, lr: theta + -lr * (direction(g, t) + w * theta))


def keras(w: float, optimizer: str, mu: float, eps: float) -> Tensor:
    """_apply_weight_decay first; Adam with epsilon beside sqrt(v), SGD with the rate inside the velocity."""
    m, v = torch.zeros_like(START), torch.zeros_like(START)

    def step(theta: Tensor, g: Tensor, t: int, lr: float) -> Tensor:
        nonlocal m, v
        theta = theta - theta * w * lr
        if optimizer == "sgd":
            m = mu * m - lr * g
            return theta + m
        m, v = m + (g - m) * (1 - BETA1), v + (g**2 - v) * (1 - BETA2)
        return theta - m * (lr * math.sqrt(1 - BETA2**t) / (1 - BETA1**t)) / (v.sqrt() + eps)

    return follow(step)


def optimi(w: float, optimizer: str, mu: float, eps: float) -> Tensor:
    """decouple_lr=True: 1 - lr / max_lr w; moments with debiased betas."""
    m, v, max_lr = torch.zeros_like(START), torch.zeros_like(START), ALPHA

    def debiased(beta: float, t: int) -> float:
        return (beta**t - beta) / (beta**t - 1)

    def step(theta: Tensor, g: Tensor, t: int, lr: float) -> Tensor:
        nonlocal m, v
        theta = theta * (1 - lr / max_lr * w)
        if optimizer == "sgd":
            m = mu * m + g
            return theta - lr * m
        one, two = debiased(BETA1, t), debiased(BETA2, t)
        m, v = m + (1 - one) * (g - m), two * v + (1 - two) * g**2
        return theta - lr * m / (v.sqrt() + eps)

    return follow(step)


def composer(w: float, optimizer: str, mu: float, eps: float) -> Tensor:
    """1 - lr / initial_lr w, then the step."""
    direction, initial_lr = direction_of(optimizer, mu, eps), ALPHA
    return follow(lambda theta, g, t, lr: theta * (1 - lr / initial_lr * w) - lr * direction(g, t))


def timm(w: float, optimizer: str, mu: float, eps: float, corrected: bool = True) -> Tensor:
    """wd_scale = lr ** 2 / max_lr with corrected_weight_decay, else lr."""
    direction, max_lr = direction_of(optimizer, mu, eps), ALPHA
    return follow(
        lambda theta, g, t, lr: theta * (1 - (lr**2 / max_lr if corrected else lr) * w) - lr * direction(g, t)
    )


def penalty(w: float, optimizer: str, mu: float, eps: float) -> Tensor:
    """Gradient of f + (w / 2) ||theta||^2 by autograd, SGD with a raw buffer."""
    assert optimizer == "sgd"
    direction = raw_buffer(mu)

    def step(theta: Tensor, g: Tensor, t: int, lr: float) -> Tensor:
        x = theta.clone().requires_grad_()
        (w / 2 * x.square().sum()).backward()
        assert x.grad is not None
        return theta - lr * direction(g + x.grad, t)

    return follow(step)


SYSTEMS: dict[str, Callable[[float, str, float, float], Tensor]] = {
    "paper": paper, "normalized": released_code, "l2": penalty, "torch": pytorch, "optax": optax, "keras": keras,
    "optimi": optimi, "composer": composer, "timm": timm,
}  # fmt: skip


def gap(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


def pairs() -> list[tuple[str, str, str, float]]:
    """Every pair of conventions under every optimizer, but for L2 with AdamW, which is an error."""
    return [
        (source, target, optimizer, momentum)
        for source, target in itertools.product(CONVENTIONS, repeat=2)
        for optimizer, momentum in SETTINGS
        if not (optimizer == "adamw" and "l2" in (source, target))
    ]


def number_for(convention: str, optimizer: str, momentum: float, lam: float = LAM) -> float:
    return convert(lam, "paper", convention, alpha=ALPHA, **SIZES, optimizer=optimizer, momentum=momentum).decay


def shape(convention: str, optimizer: str, momentum: float) -> str:
    """How the decay follows the schedule, by hand."""
    if convention == "timm":
        return "squared"
    if momentum and (convention == "l2" or (convention == "torch" and optimizer == "sgd")):
        return "through the buffer"
    return "eta"


def test_every_convention_has_a_system():
    assert list(SYSTEMS) == list(CONVENTIONS)


def same_steps(pair: tuple[str, str, str, float]) -> bool:
    """Without decay; Keras keeps the learning rate inside the momentum buffer, which has a test of its own."""
    source, target, _, momentum = pair
    return source == target or not momentum or "keras" not in (source, target)


@pytest.mark.parametrize(("source", "target", "optimizer", "momentum"), [pair for pair in pairs() if same_steps(pair)])
def test_a_pair_trains_alike_where_exact_and_apart_where_not(source, target, optimizer, momentum):
    # Keras adds epsilon elsewhere
    eps = 0.0 if "keras" in (source, target) else 1e-3
    decay = number_for(source, optimizer, momentum)
    found = convert(decay, source, target, alpha=ALPHA, **SIZES, optimizer=optimizer, momentum=momentum)
    assert found.exact == (shape(source, optimizer, momentum) == shape(target, optimizer, momentum))
    theirs = SYSTEMS[source](decay, optimizer, momentum, eps)
    apart = gap(SYSTEMS[target](found.decay, optimizer, momentum, eps), theirs)
    assert apart < 1e-12 if found.exact else apart > 1e-3, apart
    assert gap(SYSTEMS[target](1.1 * found.decay, optimizer, momentum, eps), theirs) > 1e-3  # the test can fail


@pytest.mark.parametrize(("optimizer", "momentum"), SETTINGS)
def test_the_packages_own_classes_are_the_paper(optimizer, momentum):
    options: dict[str, Any] = {"lr": ALPHA, "weight_decay": LAM, "schedule": ETA}
    if optimizer == "adamw":
        path = follow_torch(lambda p: AdamW(p, betas=(BETA1, BETA2), eps=1e-3, **options), scheduled=False)
    else:
        path = follow_torch(lambda p: SGDW(p, momentum=momentum, **options), scheduled=False)
    assert gap(path, paper(LAM, optimizer, momentum, 1e-3)) < 1e-12


def test_keras_with_momentum_is_algorithm_1_as_printed():
    printed = paper(LAM, "sgd", 0.9, 0.0, rule="sgdw_algorithm1")
    found = convert(LAM, "paper", "keras", alpha=ALPHA, optimizer="sgd", momentum=0.9)
    path = keras(found.decay, "sgd", 0.9, 0.0)
    assert found.exact and gap(path, printed) < 1e-12 and gap(path, paper(LAM, "sgd", 0.9, 0.0)) > 1e-3
    assert "Algorithm 1 as printed" in as_text(found)


def test_keras_adds_epsilon_elsewhere():
    number = number_for("keras", "adamw", 0.0)
    assert gap(keras(number, "adamw", 0.0, 1e-3), paper(LAM, "adamw", 0.0, 1e-3)) > 1e-6
    assert "epsilon" in as_text(convert(LAM, "paper", "keras", alpha=ALPHA))


@pytest.mark.parametrize(("optimizer", "momentum"), SETTINGS)
def test_the_corrected_decay_is_exact_without_a_schedule_or_without_the_option(optimizer, momentum, monkeypatch):
    number = number_for("timm", optimizer, momentum)
    without = timm(number, optimizer, momentum, 1e-3, corrected=False)
    assert gap(without, paper(LAM, optimizer, momentum, 1e-3)) < 1e-12  # as its note says
    monkeypatch.setitem(globals(), "ETA", lambda step: 1.0)
    assert gap(timm(number, optimizer, momentum, 1e-3), paper(LAM, optimizer, momentum, 1e-3)) < 1e-12


def test_over_a_cosine_the_corrected_decay_adds_up_to_three_quarters():
    etas = [cosine(100_000)(step) for step in range(100_000)]
    assert sum(eta**2 for eta in etas) / sum(etas) == pytest.approx(3 / 4, rel=1e-4)
    assert "3/4" in convert(LAM, "paper", "timm", alpha=ALPHA).notes[0]


def test_l2_with_momentum_decays_at_this_rate_in_the_steady_state():
    """Without a loss, at a constant and small rate: what is left of a weight per step, once the buffer has filled."""
    alpha, momentum, lam = 1e-3, 0.9, 1e-5
    number = convert(lam, "paper", "l2", alpha=alpha, momentum=momentum, optimizer="sgd").decay
    assert number == pytest.approx(lam * (1 - momentum) / alpha, rel=1e-15)
    theta, buffer, sizes = 1.0, 0.0, []
    for _ in range(400):
        buffer = momentum * buffer + number * theta
        theta -= alpha * buffer
        sizes.append(theta)
    assert 1 - sizes[-1] / sizes[-2] == pytest.approx(lam, rel=1e-3)
    assert 1 - sizes[1] / sizes[0] < 0.3 * lam  # and not before


def test_an_l2_penalty_without_the_half_takes_half_the_number():
    number = convert(LAM, "paper", "l2", alpha=ALPHA, optimizer="sgd")
    x = START.clone().requires_grad_()
    (number.decay / 2 * x.square().sum()).backward()  # keras.regularizers.L2(l2): l2 sum of squares
    assert x.grad is not None and gap(x.grad, number.decay * START) < 1e-15
    assert any("half" in note for note in number.notes)


# --- numbers by hand ----------------------------------------------------------------------------------------------


def test_the_papers_best_cell_in_pytorchs_unit():
    found = convert(0.00025, "paper", "torch", alpha=0.001)
    assert found.decay == 0.25 and found.exact
    assert as_text(found).splitlines()[0] == "0.25"
    assert convert(0.25, "torch", "paper", alpha=0.001).decay == 0.00025


def test_normalized_is_that_of_the_optimizers():
    found = convert(0.05, "normalized", "paper", alpha=0.001, **SIZES)
    assert found.decay == normalized(0.05, b=128, B=50_000, T=100) == pytest.approx(2.5298e-4, rel=1e-4)
    assert convert(0.05, "normalized", "torch", alpha=0.001, **SIZES).decay == pytest.approx(0.253, rel=1e-3)


def test_torchs_sgd_is_l2_and_not_decay():
    found = convert(0.001, "paper", "torch", alpha=0.1, momentum=0.9, optimizer="sgd")
    assert found.decay == pytest.approx(0.001, rel=1e-12) and not found.exact
    assert convert(5e-4, "torch", "l2", alpha=0.1, momentum=0.9, optimizer="sgd")[:2] == (5e-4, True)
    assert any("which is L2" in note for note in found.notes)
    keras_number = convert(0.001, "paper", "keras", alpha=0.1, momentum=0.9, optimizer="sgd")
    assert keras_number.decay == 0.01 and keras_number.exact


# --- properties ---------------------------------------------------------------------------------------------------

positive = st.floats(1e-12, 1e12)


@given(
    pair=st.sampled_from(pairs()),
    decay=st.one_of(st.just(0.0), positive),
    alpha=st.floats(1e-6, 1e3),
    momentum=st.floats(0, 0.999),
    sizes=st.tuples(st.integers(1, 10**5), st.integers(1, 10**8), st.floats(0.1, 1e4)),
)
def test_there_and_back_is_the_same_number(pair, decay, alpha, momentum, sizes):
    source, target, optimizer, _ = pair
    options: dict[str, Any] = dict(zip(SIZES, sizes, strict=True))
    options |= {"alpha": alpha, "optimizer": optimizer, "momentum": momentum}
    there = convert(decay, source, target, **options)
    back = convert(there.decay, target, source, **options)
    assert back.decay == pytest.approx(decay, rel=1e-14, abs=0)
    assert back.exact == there.exact
    if source == target:
        assert there.exact and there.decay == decay
    if decay == 0:
        assert there.decay == 0


def test_between_equal_units_not_even_the_last_bit_changes():
    numbers = [k / 7 for k in range(1, 200)]
    assert [convert(x, "torch", "keras", alpha=0.003).decay for x in numbers] == numbers
    assert [x * 0.003 / 0.003 for x in numbers] != numbers


@given(names=st.lists(st.sampled_from(list(CONVENTIONS)), min_size=3, max_size=3), decay=positive, momentum=positive)
def test_a_detour_does_not_change_the_number(names, decay, momentum):
    assume(momentum < 1)
    options: dict[str, Any] = SIZES | {"alpha": 0.003, "optimizer": "sgd", "momentum": momentum}
    source, between, target = names
    first = convert(decay, source, between, **options)
    second = convert(first.decay, between, target, **options)
    assert second.decay == pytest.approx(convert(decay, source, target, **options).decay, rel=1e-14)


# --- words --------------------------------------------------------------------------------------------------------

MULTIPLIED = ["torch", "optax", "keras", "optimi", "composer"]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("target", CONVENTIONS)
def test_notes_speak_of_the_schedule(target, optimizer):
    if target == "l2" and optimizer == "adamw":
        return
    found = convert(LAM / 2, "paper", target, alpha=ALPHA, momentum=0.9, optimizer=optimizer, **SIZES)
    assert found.notes[0].startswith("exact" if found.exact else "approximate") and "eta_t" in found.notes[0]
    text = " ".join(found.notes)
    if target in MULTIPLIED:
        assert "schedule" in found.notes[1]
    if target in ("torch", "keras") or (target == "optax" and optimizer == "adamw"):
        assert "multiplie" in text and "do not schedule it again" in text
    assert ("under restarts" in text) == (target == "normalized")
    assert ("alpha changes" in text) == (target in ("torch", "optax", "keras", "timm", "l2"))
    assert all("\n" not in note and note == note.strip() != "" for note in found.notes)
    assert {name for name in ("AdamW", "SGD") if name in text} <= {"adamw": {"AdamW"}, "sgd": {"SGD"}}[optimizer]


def test_the_same_number_needs_no_new_one_when_alpha_changes():
    assert not any("alpha changes" in note for note in convert(0.1, "torch", "keras", alpha=0.001).notes)


@pytest.mark.parametrize(("decay", "asks"), [(0.0099, False), (0.0101, True), (0.25, True)])
def test_a_decay_that_is_probably_in_another_unit_is_asked_about(decay, asks):
    assert any("more than 1 %" in note for note in convert(decay, "paper", "torch", alpha=0.001).notes) == asks
    assert any("more than 1 %" in note for note in convert(decay * 10, "torch", "paper", alpha=0.1).notes) == asks


def test_both_sides_of_a_conversion_can_be_inexact():
    found = convert(0.1, "timm", "l2", alpha=0.01, momentum=0.9, optimizer="sgd")
    assert [note.startswith("approximate") for note in found.notes[:3]] == [True, True, False]


def test_json_has_the_same_content():
    found = convert(0.05, "normalized", "torch", alpha=0.001, **SIZES)
    read = json.loads(as_json(found))
    assert list(read) == ["decay", "exact", "notes"]
    assert Conversion(read["decay"], read["exact"], tuple(read["notes"])) == found
    assert as_text(found) == "\n".join([str(found.decay), *found.notes])
    assert float(as_text(found).splitlines()[0]) == found.decay


ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown source": ({"source": "pytorch"}, "unknown convention 'pytorch'; known: paper, normalized, l2, torch, "),
    "unknown target": ({"target": ""}, "unknown convention ''; known: paper, normalized, l2, torch, "),
    "unknown optimizer": ({"optimizer": "lion"}, "unknown optimizer 'lion'; known: adamw, sgd"),
    "no sizes": (
        {"target": "normalized"},
        "normalized needs batch_size, train_size and epochs; missing: batch_size, train_size, epochs",
    ),
    "one size missing": (
        {"source": "normalized", "batch_size": 128, "train_size": 50_000},
        "normalized needs batch_size, train_size and epochs; missing: epochs",
    ),
    "no batch": ({"batch_size": 0}, "batch_size must be a finite number > 0, got 0"),
    "negative epochs": ({"epochs": -1.5}, "epochs must be a finite number > 0, got -1.5"),
    "endless images": ({"train_size": math.inf}, "train_size must be a finite number > 0, got inf"),
    "alpha 0": ({"alpha": 0.0}, "alpha must be a finite number > 0, got 0.0"),
    "alpha negative": ({"alpha": -0.1}, "alpha must be a finite number > 0, got -0.1"),
    "alpha nan": ({"alpha": math.nan}, "alpha must be a finite number > 0, got nan"),
    "alpha infinite": ({"alpha": math.inf}, "alpha must be a finite number > 0, got inf"),
    "alpha none": ({"alpha": None}, "alpha must be a finite number > 0, got None"),
    "alpha a text": ({"alpha": "0.1"}, "alpha must be a finite number > 0, got '0.1'"),
    "alpha a switch": ({"alpha": True}, "alpha must be a finite number > 0, got True"),
    "decay negative": ({"decay": -1e-9}, "decay must be a finite number >= 0, got -1e-09"),
    "decay nan": ({"decay": math.nan}, "decay must be a finite number >= 0, got nan"),
    "decay infinite": ({"decay": math.inf}, "decay must be a finite number >= 0, got inf"),
    "momentum 1": ({"momentum": 1.0}, "momentum must be in [0, 1), got 1.0"),
    "momentum negative": ({"momentum": -0.1}, "momentum must be in [0, 1), got -0.1"),
    "momentum nan": ({"momentum": math.nan}, "momentum must be in [0, 1), got nan"),
    "from l2 with AdamW": ({"source": "l2"}, "l2 has no equivalent for adamw: Adam divides the gradient of the "),
    "to l2 with AdamW": ({"target": "l2"}, "l2 has no equivalent for adamw: Adam divides the gradient of the "),
    "too large": ({"decay": 1e300, "alpha": 1e-300}, "the result is out of the range of floating-point numbers; "),
    "no ratio of sizes": (
        {"source": "normalized", "batch_size": 1, "train_size": 1e300, "epochs": 1e300},
        "the result is out of the range of floating-point numbers; ",
    ),
    "no ratio of sizes in the target": (
        {"target": "normalized", "batch_size": 1, "train_size": 1e300, "epochs": 1e300},
        "the result is out of the range of floating-point numbers; ",
    ),
    "a size below all numbers": (
        {"source": "normalized", "batch_size": 1, "train_size": 1e-300, "epochs": 1e-300},
        "the result is out of the range of floating-point numbers; ",
    ),
    "decay above all numbers": ({"decay": 10**400}, "decay must be a finite number >= 0, got 1000"),
    "too small": (
        {"decay": 1e-300, "alpha": 1e-300, "source": "torch", "target": "paper"},
        "the result is out of the range of floating-point numbers; ",
    ),
}


@pytest.mark.parametrize(("wrong", "message"), ERRORS.values(), ids=ERRORS)
def test_an_error_is_one_line_that_says_what_is_wrong(wrong, message):
    arguments: dict[str, Any] = {"decay": 1e-4, "source": "paper", "target": "torch", "alpha": 1e-3} | wrong
    with pytest.raises(ValueError, match=f"^{re.escape(message)}[^\n]*$"):
        convert(**arguments)


def test_an_unknown_name_is_answered_with_all_known_ones():
    with pytest.raises(ValueError, match=f"known: {', '.join(CONVENTIONS)}$"):
        convert(1e-4, "paper", "jax", alpha=1e-3)


def test_the_converter_does_not_load_torch():
    code = "import decoupled.units, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
