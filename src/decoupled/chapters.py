"""What the chapters on the longer experiments show: curves, sweeps over decay and tables, taken from stored runs.

Every function takes the rows of one experiment (`planned`), which may be partial or empty, and gives data frames or
`curves.Line`s of what is there. A cell of which any run diverged counts as missing. Judging is left to `claims`.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from decoupled import evidence, inference, measures, plan, report, store
from decoupled.curves import Line
from decoupled.figures import Ridge, number
from decoupled.runs import TRAIN_IMAGES

COLUMNS = ["label", "source", "value", "low", "high", "n"]
# series of several chapters: how they are called, and which look they have
LOOKS = {"adamw": 0, "adam": 1, "sgdw": 2, "sgd": 3}
CONTROL = {"AdamW": 5, "SGDW": 4}  # one cosine, beside AdamWR and SGDWR


def planned(frame: pd.DataFrame, profile: str, experiment: str) -> pd.DataFrame:
    """The finished runs of an experiment's plan, exactly; no chosen cells with fresh seeds, no runs of others."""
    return store.select(frame, plan.grid_runs(experiment, profile, plan.dataset_of(frame, profile)))


def curve(label: str, rows: pd.DataFrame, name: str, look: int, *, at_evaluations: bool = False) -> Line:
    """A curve of runs of one length, one list per seed; diverged runs are left out, and counted in the label."""
    if diverged := int((rows["diverged_step"] >= 0).sum()):
        label = f"{label}, without {diverged} diverged"
    rows = rows[rows["diverged_step"] < 0].sort_values("seed")
    seeds = [list(values) for values in rows[name]]
    if not seeds:
        return Line(label, [], [], look)
    x = list(rows["eval_epochs"].iloc[0]) if at_evaluations else list(range(1, len(seeds[0]) + 1))
    return Line(label, x, [values for values in seeds if len(values) == len(x)], look)


def at_the_edge(rows: pd.DataFrame, profile: str, experiment: str) -> str:
    """A sentence that names the chosen cells at an end of what was tried; a wider range may hold better ones."""
    dataset, found = plan.dataset_of(rows, profile), []
    runs = plan.grid_runs(experiment, profile, dataset)
    choices = plan.choices(experiment, profile, dataset)
    for algorithm, schedule, part in choices:
        cell = plan.choose(rows, algorithm, schedule, part)
        mine = [run for run in runs if (run.algorithm, run.schedule) == (algorithm, schedule) and run.decay > 0]
        for name, value in zip(("alpha", "decay"), cell or (), strict=False):
            tried = sorted({getattr(run, name) for run in mine})
            if value and len(tried) > 1 and value in (tried[0], tried[-1]):
                end = "smallest" if value == tried[0] else "largest"
                what = {"alpha": "learning rate", "decay": "L2 factor" if algorithm in evidence.DECOUPLED else "decay"}
                where = f" ({schedule.partition('(')[0]})" if len({s for _, s, _ in choices}) > 1 else ""
                none = " without decay" if part == "zero" else ""
                label = evidence.LABELS[plan.without_decay(algorithm) if none else algorithm]
                found.append(f"{label}{none}{where} at its {end} {what[name]}, {number(value)}")
    if not found:
        return "No chosen cell lies at an end of the learning rates or decays that were tried.\n"
    listed = "; ".join(dict.fromkeys(found))
    return f"*Chosen at an end of what was tried,* so that a wider range may hold a better cell: {listed}.\n"


def by_decay(rows: pd.DataFrame, unit: str = "raw") -> pd.DataFrame:
    """Test errors, seeds (index) x decays (columns); at each decay of the learning rate with the lowest mean.

    unit: "raw", or "normalized" for lambda_norm, at which normalized decay would be the same decay.
    """
    cells = rows.groupby(["decay", "alpha"])["test_error"].mean()
    broken = rows[rows["diverged_step"] >= 0].set_index(["decay", "alpha"]).index
    cells[cells.index.isin(broken)] = math.nan
    out: dict[float, pd.Series] = {}
    for decay, alpha in cells.dropna().sort_values().index:
        part = rows[(rows["decay"] == decay) & (rows["alpha"] == alpha)]
        run = part.iloc[0]
        scale = math.sqrt(run["train_size"] * run["epochs"] / run["batch_size"])
        out.setdefault(decay * (scale if unit == "normalized" else 1.0), errors(part))
    return pd.DataFrame(out).sort_index(axis=1).sort_index()


def positive(table: pd.DataFrame) -> pd.DataFrame:
    """The columns of positive decay."""
    return table.loc[:, table.columns.to_numpy(float) > 0]


def decay_line(label: str, table: pd.DataFrame, look: int) -> Line:
    """A table of `by_decay` as a line over its positive decays."""
    table = positive(table)
    return Line(label, [float(x) for x in table.columns], table.to_numpy(float).tolist(), look)


def difference(label: str, a: pd.Series, b: pd.Series) -> dict[str, Any]:
    """Errors a less b, paired by seed, as a line of `curves.intervals`."""
    found = inference.paired(a, b)
    return {
        "label": label,
        "source": "ours",
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "n": found.n,
    }


def errors(rows: pd.DataFrame) -> pd.Series:
    """Final test errors by seed."""
    return rows.set_index("seed")["test_error"].sort_index()


def ridge(grid: inference.Grid, sd: float) -> Ridge | None:
    """Best decay of each learning rate of a grid, and the line through them; None if fewer than three rows tell one.

    Of a grid with its column of decay 0, which no line can pass, only the rest counts.
    """
    error = positive(grid.error)
    if min(error.shape) < 3 or math.isnan(sd):
        return None
    alphas, decays = error.index.to_numpy(float), error.columns.to_numpy(float)
    best, _ = inference.row_optima(error.to_numpy(float), decays, sd)
    used = np.isfinite(best)
    if used.sum() < 3:
        return None
    slope = float(inference.ridge_slope(error.to_numpy(float), alphas, decays, sd))
    line = best[used].mean() + slope * (np.log2(alphas) - np.log2(alphas[used]).mean())
    return Ridge(alphas.tolist(), (2**best).tolist(), (2**line).tolist())


# --- Figure 3: long runs ----------------------------------------------------------------------------------------------


def chosen(rows: pd.DataFrame, algorithm: str, schedule: str = "cosine") -> pd.DataFrame:
    """The fresh seeds of the chosen cell of an algorithm; seed 0, which chose it, while there are none."""
    cell = evidence.select(rows, algorithm, schedule)
    if cell is None:
        return rows.iloc[:0]
    name = algorithm if cell.decay else plan.without_decay(algorithm)
    part = rows[
        (rows["algorithm"] == name)
        & (rows["alpha"] == cell.alpha)
        & (rows["decay"] == cell.decay)
        & rows["schedule"].str.startswith(schedule)
    ]
    return part[part["seed"] != evidence.GRID_SEED] if (part["seed"] != evidence.GRID_SEED).any() else part


def final_points(rows: pd.DataFrame, algorithm: str) -> tuple[Line, Line]:
    """Final test error of the grid runs of an algorithm: over decay, and over train loss."""
    names = {"adam": "Adam with L2", "adamw": "AdamW"}
    part = rows[(rows["algorithm"] == algorithm) & (rows["seed"] == evidence.GRID_SEED) & (rows["diverged_step"] < 0)]
    part = part.sort_values("decay")
    test, look = [part["test_error"].tolist()], LOOKS[algorithm]
    return (
        Line(names[algorithm], part["decay"].tolist(), test, look),
        Line(names[algorithm], part["train_loss"].tolist(), test, look),
    )


def paper_points(numbers: pd.DataFrame, algorithm: str) -> tuple[Line, Line]:
    """`final_points` of the paper: the same two lines, read off its Figure 3."""
    names = {"adam": "Adam", "adamw": "AdamW"}
    mine = numbers[(numbers["figure"] == "Fig3") & (numbers["algorithm"] == names[algorithm])]
    lines = []
    for at in ("wd", "train_loss"):
        part = mine[mine[at].notna()].sort_values(at)
        lines.append(Line(names[algorithm], part[at].tolist(), [part["value"].tolist()], LOOKS[algorithm]))
    return lines[0], lines[1]


def at_equal_loss(rows: pd.DataFrame) -> pd.DataFrame:
    """Test error of both algorithms, read off between their runs at the same train loss, where both have been."""
    curves = {}
    for algorithm in ("adam", "adamw"):
        points = final_points(rows, algorithm)[1]
        order = np.argsort(points.x)
        curves[algorithm] = np.log(np.array(points.x))[order], np.array(points.seeds[0])[order]
    low = max((x[0] for x, _ in curves.values() if len(x)), default=math.inf)
    high = min((x[-1] for x, _ in curves.values() if len(x)), default=-math.inf)
    if low >= high or any(len(x) < 2 for x, _ in curves.values()):
        return pd.DataFrame(columns=["train loss", "Adam with L2", "AdamW", "Adam minus AdamW"])
    at = np.linspace(low, high, 3)
    adam, adamw = (np.interp(at, *curves[name]) for name in ("adam", "adamw"))
    columns = {"train loss": np.exp(at), "Adam with L2": adam, "AdamW": adamw, "Adam minus AdamW": adam - adamw}
    return pd.DataFrame(columns)


# --- Figure 4: restarts -----------------------------------------------------------------------------------------------


def restart_parts(rows: pd.DataFrame, profile: str) -> dict[str, pd.DataFrame]:
    """The planned runs of `restarts` by what they are."""
    long = rows["epochs"] == plan.PROFILES[profile].long_epochs
    again = rows["schedule"].str.startswith("restarts")
    raw = rows["decay_unit"] == "raw"
    out = {}
    for algorithm, name in (("adamw", "AdamW"), ("sgdw", "SGDW")):
        mine = rows["algorithm"] == algorithm
        out[f"{name}R"] = rows[mine & long & again & ~raw]
        out[name] = rows[mine & long & ~again]
        out[f"{name}, short"] = rows[mine & ~long & ~again]
    out["AdamWR, raw decay"] = rows[(rows["algorithm"] == "adamw") & long & again & raw]
    return out


def restart_lines(rows: pd.DataFrame, profile: str, adam: pd.DataFrame) -> dict[str, list[Line]]:
    """Test error and train loss by epoch; cosine runs that end early as points. adam: runs of `chosen`."""
    parts, looks = restart_parts(rows, profile), {"AdamWR": 0, "SGDWR": 2} | CONTROL
    test, loss = [], []
    for name, look in looks.items():
        test.append(curve(name, parts[name], "test_curve", look, at_evaluations=True))
        loss.append(curve(name, parts[name], "loss_curve", look))
    test.append(curve("Adam with L2", adam, "test_curve", 1, at_evaluations=True))
    loss.append(curve("Adam with L2", adam, "loss_curve", 1))
    for name, look in (("AdamW", 0), ("SGDW", 2)):
        table = parts[f"{name}, short"].pivot(index="seed", columns="epochs", values="test_error")
        whole = table.dropna(axis=1)
        ends = [float(x) for x in whole.columns]
        test.append(Line(f"{name}, cosine that ends here", ends, whole.to_numpy(float).tolist(), look, "points"))
    return {"test error, %": test, "train loss": loss}


def restart_table(rows: pd.DataFrame, profile: str) -> pd.DataFrame:
    """At the end of every cycle: restarts, the cosine that ends there, the long cosine on its way; paired by seed."""
    parts, lines = restart_parts(rows, profile), []
    size = plan.PROFILES[profile]
    for name in ("AdamW", "SGDW"):
        for end in (size.first_cycle * (2**k - 1) for k in range(1, size.cycles + 1)):
            again, long = (_at(parts[part], end) for part in (f"{name}R", name))
            ended = parts[f"{name}, short"].query("epochs == @end")
            short = errors(ended) if end < size.long_epochs else long
            found = inference.paired(again, short)
            gap = "–" if math.isnan(found.value) else f"{found.value:+.2f}"
            around = "" if math.isnan(found.low) else f" ({found.low:+.2f} to {found.high:+.2f})"
            lines.append(
                {
                    "after epochs": end,
                    "optimizer": name,
                    "with restarts": again.mean(),
                    "cosine that ends here": short.mean(),
                    "difference (95 % interval)": f"{gap}{around}".replace("-", "−"),
                    "long cosine, on its way": long.mean(),
                    "seeds": found.n,
                }
            )
    return pd.DataFrame(lines)


def cycle_ends(rows: pd.DataFrame, profile: str, numbers: pd.DataFrame) -> tuple[list[Line], list[Line]]:
    """Test error at the end of every cycle over the cycle's number, the paper's and ours; ours with the control."""
    size, parts = plan.PROFILES[profile], restart_parts(rows, profile)
    ends = [size.first_cycle * (2**k - 1) for k in range(1, size.cycles + 1)]
    paper, ours = [], []
    theirs = numbers[(numbers["figure"] == "Fig4") & (numbers["dataset"] == "CIFAR-10") & (numbers["metric"] == "top1")]
    for name, look in (("AdamW", 0), ("SGDW", 2)):
        part = theirs[(theirs["algorithm"] == name) & theirs["schedule"].str.startswith("restarts")]
        part = part.sort_values("epoch")
        paper.append(Line(f"{name}R", list(range(1, len(part) + 1)), [part["value"].tolist()], look))
        again = pd.DataFrame({k: _at(parts[f"{name}R"], end) for k, end in enumerate(ends, start=1)})
        short = parts[f"{name}, short"].set_index(["seed", "epochs"])["test_error"].unstack()
        control = short.rename(columns={end: k for k, end in enumerate(ends, start=1)}).dropna(axis=1)
        for label, table, kind in (
            (f"{name}R", again, look),
            (f"{name}, one cosine of that length", control, CONTROL[name]),
        ):
            if len(table):
                ours.append(Line(label, [float(k) for k in table.columns], table.to_numpy(float).tolist(), kind))
    return paper, ours


def _at(rows: pd.DataFrame, epoch: int) -> pd.Series:
    """Test errors after an epoch, by seed."""
    found = {
        row["seed"]: row["test_curve"][list(row["eval_epochs"]).index(epoch)]
        for row in rows.to_dict("records")
        if epoch in list(row["eval_epochs"])
    }
    return pd.Series(found, dtype=float).sort_index()


# --- Supplementary Figure 3: normalized decay -------------------------------------------------------------------------

UNITS = {"raw decay λ": "raw", "normalized decay λ$_{norm}$": "normalized"}  # label of an axis -> unit of `by_decay`
SIZES = {"epochs": "epochs", "train_size": "training images", "batch_size": "images per batch"}
RULE = {"epochs": -0.5, "train_size": -0.5, "batch_size": 0.5}  # exponent of the best decay, by Appendix B.1


def sizes(rows: pd.DataFrame, profile: str, field: str) -> dict[int, pd.DataFrame]:
    """The rows of `normalized` by the value of one field, at the profile's own values of the other two."""
    setting: Mapping[str, Any] = plan.PROFILES[profile].setting
    own = {"epochs": 100, "batch_size": 128, "train_size": 0} | dict(setting)
    fixed = [name for name in SIZES if name != field]
    keep = np.logical_and.reduce([rows[name] == own[name] for name in fixed]) if len(rows) else []
    part = rows[keep] if len(rows) else rows
    return {int(value): part[part[field] == value] for value in sorted(part[field].unique())}


def size_lines(parts: Mapping[int, pd.DataFrame], what: str, unit: str) -> list[Line]:
    """Test error over decay, one line per size."""
    return [decay_line(f"{size:,} {what}", by_decay(part, unit), i) for i, (size, part) in enumerate(parts.items())]


Exponent = tuple[float, float, float]


def optima(parts: Mapping[int, pd.DataFrame], source: str, sd: float = math.nan) -> tuple[pd.DataFrame, Exponent]:
    """Best decay per size (columns x, source, value, low, high), and the exponent with which it goes with the size.

    As `measures.exponent` has them, with its bootstrap. sd: between seeds, where the rows do not show it themselves.
    NaN while a size lacks cells that another has, or the spread is unknown.
    """
    grids = {size: evidence.as_grid(part[part["decay"] > 0]) for size, part in parts.items()}
    spreads = [evidence.pooled_sd(part) if math.isnan(sd) else sd for part in parts.values()]
    none = pd.DataFrame({"x": list(parts), "source": source, **dict.fromkeys(("value", "low", "high"), math.nan)})
    shapes = {grid.error.shape for grid in grids.values()}
    whole = all(grid.error.notna().to_numpy().all() for grid in grids.values())
    if len(grids) < 2 or len(shapes) > 1 or min(next(iter(shapes))) < 1 or not whole or any(map(math.isnan, spreads)):
        return none, (math.nan,) * 3

    def best(grid: inference.Grid, error: np.ndarray, spread: float) -> np.ndarray:
        return measures.log_optimum(error, grid.error.columns.to_numpy(float), spread)

    def fit(*errors: np.ndarray) -> np.ndarray:
        found = [best(*of) for of in zip(grids.values(), errors, spreads, strict=True)]
        return inference.power(np.stack(found, -1), np.array(list(grids), float))

    lines = []
    for (size, grid), spread in zip(grids.items(), spreads, strict=True):
        found = inference.bootstrap(lambda e, g=grid, s=spread: best(g, e, s), [grid], spread)
        lines.append({"x": size, "source": source, "value": 2 ** found[0], "low": 2 ** found[1], "high": 2 ** found[2]})
    return pd.DataFrame(lines), inference.bootstrap(fit, list(grids.values()), spreads)


def paper_budgets(paper: pd.DataFrame, unit: str = "raw") -> dict[int, pd.DataFrame]:
    """The paper's cells of CIFAR-10 by budget, of the panels with raw or with normalized decay."""
    rows = evidence.paper_budgets(paper)
    rows = rows[(rows["train_size"] == TRAIN_IMAGES) & (rows["decay_unit"] == unit)]
    return {int(epochs): rows[rows["epochs"] == epochs] for epochs in sorted(rows["epochs"].unique())}


def paper_lines(paper: pd.DataFrame, unit: str) -> list[Line]:
    """The paper's test errors over decay, one line per budget, each decay at its best learning rate."""
    return size_lines(paper_budgets(paper, unit), "epochs", unit)


def exponent_line(label: str, best: pd.DataFrame, slope: tuple[float, float, float], rule: float) -> dict[str, Any]:
    """One row of the table of exponents, from what `optima` gives."""
    found = best["value"].dropna()
    return {
        "best decay against": label,
        "exponent": slope[0],
        "95 % interval": report.interval(*slope[1:]),
        "the rule": rule,
        "best decays, smallest size to largest": ", ".join(number(float(x)) for x in found) or "–",
    }
