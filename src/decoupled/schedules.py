"""Schedule multipliers eta_t: total functions of the step, with values in [0, 1].

The paper (section 3) writes alpha for the initial learning rate and eta_t for the multiplier that a schedule
applies to it; eta_t also multiplies decoupled decay, alpha never does. A schedule here is a function of the
number of updates already made: `eta(0)` belongs to the first update. Every schedule has a value at every
step >= 0, so a run that goes on past its budget keeps a defined multiplier.

A run names its schedule by a short text whose numbers are epochs, for example `cosine` or `restarts(10, 2)`;
`parse` turns the text into a `Schedule` that counts updates.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """A multiplier and, for normalized decay, the length of the restart cycle that a step belongs to."""

    eta: Callable[[int], float]  # updates already made -> multiplier in [0, 1]
    cycle: Callable[[int], tuple[int, int]]  # updates already made -> (first step, length) of the current cycle


def fixed() -> Callable[[int], float]:
    """eta = 1 for ever."""
    return lambda step: 1.0


def step_drop(factor: float, at: list[int]) -> Callable[[int], float]:
    """Multiply by `factor` at each step listed in `at`; the drop applies from that step on."""
    return lambda step: factor ** sum(step >= edge for edge in at)


def linear(total: int) -> Callable[[int], float]:
    """From 1 at step 0 down to 0 at step `total`, 0 afterwards."""
    return lambda step: max(0.0, 1.0 - step / total)


def exponential(rate: float, decay_steps: float, staircase: bool = False) -> Callable[[int], float]:
    """rate^(step / decay_steps); the staircase form takes the floor of the exponent."""
    return lambda step: rate ** (step // decay_steps if staircase else step / decay_steps)


def cosine(total: int) -> Callable[[int], float]:
    """0.5 (1 + cos(pi step / total)) down to 0 at step `total`, 0 afterwards (SGDR, eq. 5, one cycle)."""
    return lambda step: 0.5 * (1.0 + math.cos(math.pi * min(step / total, 1.0)))


def restart_cycle(step: int, t_0: int, t_mult: int) -> tuple[int, int]:
    """(first step, length) of the cycle that `step` belongs to, for cycles t_0, t_0 t_mult, t_0 t_mult^2, ..."""
    start, length = 0, t_0
    if t_mult == 1:
        return step - step % t_0, t_0
    while step >= start + length:
        start, length = start + length, length * t_mult
    return start, length


def warm_restarts(t_0: int, t_mult: int) -> Callable[[int], float]:
    """Cosine cycles of t_0, t_0 t_mult, ... steps, back to 1 at the first step of each (SGDR, eq. 5, per batch)."""

    def eta(step: int) -> float:
        start, length = restart_cycle(step, t_0, t_mult)
        return 0.5 * (1.0 + math.cos(math.pi * (step - start) / length))

    return eta


# name -> the names of its numbers, all in epochs but for factors and rates; `*` takes one or more
GRAMMAR = {
    "fixed": (),
    "linear": (),
    "cosine": (),
    "step": ("factor", "*epochs"),
    "exponential": ("rate", "epochs"),
    "staircase": ("rate", "epochs"),
    "restarts": ("t_0", "t_mult"),
}


def canonical(text: str) -> str:
    """The one spelling of a schedule that all its spellings share: `step(0.10,30)` is `step(0.1, 30)`."""
    name, numbers = _read(text)
    return f"{name}({', '.join(repr(x).removesuffix('.0') for x in numbers)})" if numbers else name


def _read(text: str) -> tuple[str, list[float]]:
    """Name and numbers of a schedule; ValueError for anything that GRAMMAR does not allow."""
    match = re.fullmatch(r"([a-z]+)(?:\(([^()]*)\))?", text.strip())
    name = match[1] if match else ""
    if match is None or name not in GRAMMAR:
        known = ", ".join(f"{n}({', '.join(a)})" if a else n for n, a in GRAMMAR.items())
        raise ValueError(f"unknown schedule {text!r}; known: {known}")
    try:
        numbers = [float(part) for part in match[2].split(",")] if (match[2] or "").strip() else []
    except ValueError:
        raise ValueError(f"schedule {text!r}: its arguments must be numbers") from None
    wanted = GRAMMAR[name]
    enough = len(numbers) >= len(wanted) if any(a.startswith("*") for a in wanted) else len(numbers) == len(wanted)
    if not enough:
        raise ValueError(f"schedule {text!r}: {name} takes ({', '.join(wanted)})")
    if any(not 0 < x < 1e9 for x in numbers):
        raise ValueError(f"schedule {text!r}: its numbers must be positive and below 1e9")
    if name in ("step", "exponential", "staircase") and numbers[0] > 1:
        raise ValueError(f"schedule {text!r}: a factor above 1 would lift the multiplier out of [0, 1]")

    if name == "restarts" and numbers[1] != int(numbers[1]):
        raise ValueError(f"schedule {text!r}: t_mult must be a whole number")
    return name, numbers


def parse(text: str, epochs: int, steps_per_epoch: int) -> Schedule:
    """The schedule that `text` names, for a run of `epochs` epochs of `steps_per_epoch` updates.

    Raises ValueError with one line that says what is wrong and what is possible.
    """
    if epochs < 1 or steps_per_epoch < 1:
        raise ValueError(f"a schedule needs at least one epoch of one update, got {epochs} of {steps_per_epoch}")
    name, numbers = _read(text)

    def steps(number: float) -> int:
        return max(1, round(number * steps_per_epoch))

    total = epochs * steps_per_epoch
    if name == "restarts":
        t_0, t_mult = steps(numbers[0]), int(numbers[1])
        return Schedule(warm_restarts(t_0, t_mult), lambda step: restart_cycle(step, t_0, t_mult))
    eta = {
        "fixed": fixed,
        "linear": lambda: linear(total),
        "cosine": lambda: cosine(total),
        "step": lambda: step_drop(numbers[0], [steps(x) for x in numbers[1:]]),
        "exponential": lambda: exponential(numbers[0], numbers[1] * steps_per_epoch),
        "staircase": lambda: exponential(numbers[0], numbers[1] * steps_per_epoch, staircase=True),
    }[name]()
    return Schedule(eta, lambda step: (0, total))
