"""The advice of tutorials, as comparisons with AdamW at its best decay: what the chapter on `tricks` shows."""

import math
from typing import Any

import numpy as np
import pandas as pd

from decoupled import plan
from decoupled.chapters import COLUMNS, difference, errors
from decoupled.runs import KINDS


def parts_of(rows: pd.DataFrame, profile: str) -> dict[str, pd.Series]:
    """Test errors by seed of what `tricks` compares, by label; runs of the profile's own width and best rate."""
    best = plan.PROFILES[profile].best
    own = rows[rows["width"] == plan.PROFILES[profile].setting.get("width")]
    alpha, decay = best["adamw"]

    def pick(algorithm: str, at: float, kinds: str = KINDS) -> pd.Series:
        same = np.isclose(own["decay"], at, rtol=1e-9, atol=0) & (own["decayed"] == kinds)
        return errors(own[same & (own["algorithm"] == algorithm)])

    out = {"best decay": pick("adamw", decay), "no decay at all": pick("adamw", 0.0)}
    for value in plan.COMMON:
        out[f"λ = {value:g} (the paper's unit)"] = pick("adamw", value)
    for value in plan.COMMON:
        out[f"weight_decay = {value:g} (PyTorch's AdamW)"] = pick("adamw", alpha * value)
    for value in plan.COMMON:
        out[f"λ′ = {value:g} (Adam with L2)"] = pick("adam", value)
    out["best decay, weights only"] = pick("adamw", decay, "weight")
    out["best decay, weights and biases, not norms"] = pick("adamw", decay, "weight+bias")
    out[f"far too much: λ = {plan.TOO_MUCH:g}"] = pick("adamw", plan.TOO_MUCH)
    return out


def effects(rows: pd.DataFrame, profile: str, margin: float) -> pd.DataFrame:
    """What each choice costs against AdamW at its best decay, paired by seed, and a verdict by a stated rule.

    margin: of no difference, as a part of the error. Columns as in `curves.intervals`, and verdict, says.
    """
    parts = parts_of(rows, profile)
    base = parts.pop("best decay")
    reach, lines = margin * float(base.mean()) if len(base) else math.nan, []
    for label, part in parts.items():
        line = difference(label, part, base)
        verdict = cost(line["low"], line["high"], reach)
        lines.append({**line, "verdict": verdict, "says": verdict})
    return pd.DataFrame(lines, columns=[*COLUMNS, "verdict", "says"])


def cost(low: float, high: float, margin: float) -> str:
    """A 95 % interval of an excess error in words; at least `inconclusive`."""
    if math.isnan(low) or math.isnan(high):
        return "not tested"
    words = {
        "better": high < 0,
        "worse": low > margin,
        "no real cost": high < margin,
        "worse, size open": low > 0,
    }
    return next((word for word, holds in words.items() if holds), "inconclusive")


def width_effects(rows: pd.DataFrame, profile: str) -> pd.DataFrame:
    """What AdamW loses without decay, by width of the network; columns as in `curves.intervals`."""
    decay, mine = plan.PROFILES[profile].best["adamw"][1], rows[rows["algorithm"] == "adamw"]
    mine = mine[mine["decayed"] == KINDS]
    lines = []
    for width in sorted(mine["width"].unique()):
        part = mine[mine["width"] == width]
        with_decay, without = (errors(part[np.isclose(part["decay"], d, rtol=1e-9, atol=0)]) for d in (decay, 0.0))
        lines.append(difference(f"width {width}", without, with_decay))
    return pd.DataFrame(lines, columns=COLUMNS)


def mapped(rows: pd.DataFrame) -> dict[str, Any]:
    """SGD with L2 less SGDW at lambda = alpha lambda' / (1 - beta1), paired by seed."""
    return difference("SGD minus SGDW", *(errors(rows[rows["algorithm"] == name]) for name in ("sgd", "sgdw")))
