"""Weight decay between conventions: what one library calls `weight_decay`, said in the units of another.

Every convention says how much of a weight goes per step. Letters are those of `optim`: alpha is the initial learning
rate, eta_t the schedule multiplier (so a library's current learning rate is alpha eta_t), lambda the paper's decay.

    convention        its number w takes per step     lambda     shape
    paper             eta_t w                         w          eta
    optimi, composer  (lr / max lr) w = eta_t w       w          eta
    normalized        eta_t w sqrt(b / (B T))         the same   eta
    optax, keras      lr w = alpha eta_t w            alpha w    eta
    torch, AdamW      lr w = alpha eta_t w            alpha w    eta
    timm, corrected   lr^2 / max lr w = alpha eta_t^2 w          eta squared
    l2, momentum 0    lr w, through the gradient      alpha w    eta
    l2, momentum mu   a buffer of past weights        alpha w / (1 - mu), steady state at constant lr    buffer
    torch, SGD        is l2: torch.optim.SGD adds w theta to the gradient

Between two conventions of the same shape the conversion is exact under every schedule; between two shapes it holds only
nearly, and `convert` says so. With Adam no decay equals the penalty of L2.
"""

import json
import math
from typing import NamedTuple, TypeGuard

OPTIMIZERS = ("adamw", "sgd")
CONVENTIONS = {
    "paper": "lambda per step, multiplied by eta_t only",
    "normalized": "lambda_norm of the paper; needs batch_size, train_size and epochs",
    "l2": "coefficient lambda' of the penalty (lambda' / 2) ||theta||^2, for SGD",
    "torch": "weight_decay of torch.optim.AdamW, with sgd of torch.optim.SGD",
    "optax": "weight_decay of optax.adamw, or of optax.add_decayed_weights before the learning rate",
    "keras": "weight_decay of keras.optimizers",
    "optimi": "weight_decay of optimi with decouple_lr=True",
    "composer": "weight_decay of composer.optim.DecoupledAdamW and DecoupledSGDW",
    "timm": "weight_decay of timm with corrected_weight_decay=True",
}
MUCH = 0.01  # lambda above which a number is more likely in another unit than meant

EXACT = "exact under every schedule eta_t, as long as both sides follow the same one"
INEXACT = {
    "eta squared": (
        "approximate: timm's corrected decay follows eta_t^2 instead of eta_t, equal only while eta_t = 1; "
        "over a cosine schedule it adds up to 3/4"
    ),
    "buffer": (
        "approximate: L2 passes through the momentum buffer; the number is for the steady state at a constant learning "
        "rate, and differs in the first steps and under a schedule eta_t"
    ),
}
CYCLES = "normalized holds for one number of epochs; under restarts convert anew for the epochs of each cycle"
ALPHA = "the number is for this alpha; convert anew when alpha changes"
LARGE = "more than 1 % of every weight goes at each step while eta_t = 1: is the number in this unit?"
# what else must be set on the side that receives the number: with AdamW, with SGD
SETTINGS = {
    "paper": (
        "decoupled.AdamW with lr = alpha and schedule = eta_t, which multiplies the decay; alpha never does",
        "decoupled.SGDW with lr = alpha and schedule = eta_t, which multiplies the decay; alpha never does",
    ),
    "l2": (
        "",
        "add this number times the weight to the gradient; a penalty without the factor 1/2, such as "
        "keras.regularizers.L2, takes half of it",
    ),
    "torch": (
        "torch.optim.AdamW multiplies weight_decay by the current learning rate alpha eta_t; do not schedule it again",
        "torch.optim.SGD adds weight_decay times the weight to the gradient, which is L2, and multiplies by the "
        "current learning rate alpha eta_t; do not schedule it again",
    ),
    "optax": (
        "optax.adamw multiplies weight_decay by the current learning rate alpha eta_t; do not schedule it again",
        "optax.sgd has no decay: chain optax.trace, optax.add_decayed_weights with this number and "
        "optax.scale_by_learning_rate with the schedule alpha eta_t, in this order",
    ),
    "keras": (
        "keras.optimizers.AdamW multiplies weight_decay by the current learning rate alpha eta_t; do not schedule it "
        "again. Beside the decay, Keras adds epsilon before bias correction, the paper after it",
        "keras.optimizers.SGD decays beside the gradient and multiplies weight_decay by the current learning rate "
        "alpha eta_t; do not schedule it again. With momentum its buffer is that of Algorithm 1 as printed",
    ),
    "optimi": (
        "optimi.AdamW with decouple_lr=True multiplies weight_decay by lr / max_lr = eta_t; do not schedule it again; "
        "set max_lr = alpha if a warm-up starts lower",
        "optimi.SGD with decouple_lr=True multiplies weight_decay by lr / max_lr = eta_t; do not schedule it again; "
        "set max_lr = alpha if a warm-up starts lower",
    ),
    "composer": (
        "DecoupledAdamW multiplies weight_decay by lr / (lr at construction) = eta_t; do not schedule it again; "
        "construct it with lr = alpha",
        "DecoupledSGDW multiplies weight_decay by lr / (lr at construction) = eta_t; do not schedule it again; "
        "construct it with lr = alpha",
    ),
    "timm": (
        "timm's AdamWLegacy with corrected_weight_decay=True and lr = alpha at construction, its max_lr; without the "
        "option the decay is lr weight_decay, and this number is lambda / alpha exactly as for optax",
        "timm's SGDW with corrected_weight_decay=True and lr = alpha at construction, its max_lr; without the "
        "option the decay is lr weight_decay, and this number is lambda / alpha exactly as for optax",
    ),
}


class Conversion(NamedTuple):
    """A decay in its new unit."""

    decay: float
    exact: bool  # the same decay at every step under any schedule, not only nearly
    notes: tuple[str, ...]  # how far the two agree, and what else must be set


class _Unit(NamedTuple):
    factor: float  # lambda = factor * number
    shape: str  # how the decay follows the schedule: "eta", "eta squared" or "buffer"
    of_alpha: bool  # whether the factor contains alpha


def convert(
    decay: float,
    source: str,
    target: str,
    *,
    alpha: float,
    batch_size: float | None = None,
    train_size: float | None = None,
    epochs: float | None = None,
    momentum: float = 0.0,
    optimizer: str = "adamw",
) -> Conversion:
    """`decay`, a number of convention `source`, as a number of convention `target`.

    Args:
        decay: the number to convert, >= 0.
        source, target: names in `CONVENTIONS`.
        alpha: the initial learning rate; with a warm-up, the highest.
        batch_size, train_size, epochs: b, B and T of normalized decay, which needs all three.
        momentum: of SGD, in [0, 1); matters where one side is L2.
        optimizer: `adamw` or `sgd`.

    Raises:
        ValueError: for an unknown name, a number out of its range, a missing size, or L2 with AdamW.
    """
    for name in (source, target):
        if name not in CONVENTIONS:
            raise ValueError(f"unknown convention {name!r}; known: {', '.join(CONVENTIONS)}")
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer {optimizer!r}; known: {', '.join(OPTIMIZERS)}")
    if not (_is_number(decay) and 0 <= decay < math.inf):
        raise ValueError(f"decay must be a finite number >= 0, got {decay!r}")
    sizes = {"batch_size": batch_size, "train_size": train_size, "epochs": epochs}
    for name, value in {"alpha": alpha, **sizes}.items():
        if not (value is None and name in sizes) and not (_is_number(value) and 0 < value < math.inf):
            raise ValueError(f"{name} must be a finite number > 0, got {value!r}")
    if not (_is_number(momentum) and 0 <= momentum < 1):
        raise ValueError(f"momentum must be in [0, 1), got {momentum!r}")

    try:
        given, wanted = (_unit(name, alpha, sizes, momentum, optimizer) for name in (source, target))
        result = float(decay) if given.factor == wanted.factor else decay * given.factor / wanted.factor
    except ZeroDivisionError:  # b / (B T) is too small for a number
        result = math.inf
    if not math.isfinite(result) or (result == 0 and decay > 0):
        raise ValueError("the result is out of the range of floating-point numbers; check decay and alpha")
    exact = given.shape == wanted.shape
    notes = [EXACT] if exact else [INEXACT[unit.shape] for unit in (given, wanted) if unit.shape in INEXACT]
    if target in SETTINGS:
        notes.append(SETTINGS[target][OPTIMIZERS.index(optimizer)])
    if "normalized" in (source, target):
        notes.append(CYCLES)
    if given.of_alpha != wanted.of_alpha:
        notes.append(ALPHA)
    if decay * given.factor > MUCH:
        notes.append(LARGE)
    return Conversion(result, exact, tuple(notes))


def as_text(conversion: Conversion) -> str:
    """The number in the shortest form that reads back the same, and below it one line per note."""
    return "\n".join([repr(conversion.decay), *conversion.notes])


def as_json(conversion: Conversion) -> str:
    """A JSON object with the keys decay, exact and notes."""
    return json.dumps(conversion._asdict(), indent=1)


def _unit(name: str, alpha: float, sizes: dict[str, float | None], momentum: float, optimizer: str) -> _Unit:
    if name == "normalized":
        missing = [size for size, value in sizes.items() if value is None]
        if missing:
            raise ValueError(f"normalized needs batch_size, train_size and epochs; missing: {', '.join(missing)}")
        b, B, T = (float(value) for value in sizes.values() if value is not None)
        return _Unit(math.sqrt(b / (B * T)), "eta", False)
    if name == "l2" and optimizer == "adamw":
        raise ValueError(
            "l2 has no equivalent for adamw: Adam divides the gradient of the penalty by sqrt(v_hat), another number "
            "for every weight; l2 needs optimizer sgd"
        )
    if name == "l2" or (name == "torch" and optimizer == "sgd"):
        return _Unit(alpha / (1 - momentum), "buffer" if momentum else "eta", True)
    if name in ("torch", "optax", "keras", "timm"):
        return _Unit(alpha, "eta squared" if name == "timm" else "eta", True)
    return _Unit(1.0, "eta", False)  # paper, optimi, composer


def _is_number(x: object) -> TypeGuard[float]:
    return isinstance(x, float) or (isinstance(x, int) and not isinstance(x, bool) and abs(x) < 2**1023)
