"""What the book shows of the results, as tables: computed by `claims` from stored runs and the paper's figures.

Nothing here judges or draws. Every function takes data frames as `store` returns them and gives a data frame, a
dictionary of plain numbers, or the text of a MyST table.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from decoupled import claims, evidence, inference, plan, store
from decoupled.runs import TRAIN_IMAGES

ALGORITHMS = ("sgd", "sgdw", "adam", "adamw")
SLOPE = ("value", "low", "high")
NUMBERS = Path("data/paper/paper_numbers.csv")  # the paper's curves and SGDR's tables, for `load_paper`
TEST_LABELS = np.repeat(np.arange(10), 1000)  # `data` sorts the test images by class; ensembles check that it fits


def load_paper(path: Path = Path("data/paper/paper_figures.csv")) -> pd.DataFrame:
    """The digitised cells of the paper's heat maps, or NUMBERS; ValueError, in one line, if the file is not there."""
    try:
        return pd.read_csv(path)
    except OSError:
        raise ValueError(f"{path} is missing; run from the top folder of the repository") from None


def judge(
    frame: pd.DataFrame, profile: str, paper: pd.DataFrame, labels: np.ndarray | None = TEST_LABELS
) -> pd.DataFrame:
    """`claims.judge` of a profile's runs, each claim on the experiment that it is about."""
    numbers = load_paper(NUMBERS)
    return claims.judge(claims.by_experiment(frame, profile), claims.Paper(paper, numbers), labels)


def markdown(table: pd.DataFrame) -> str:
    """A data frame as a MyST table, without its index; floats with two decimals, missing ones as a dash."""

    def text(value: Any) -> str:
        if isinstance(value, float):
            return "–" if math.isnan(value) else f"{value:.2f}".replace("-", "−")
        return str(value)

    lines = ["| " + " | ".join(map(str, table.columns)) + " |", "|" + " --- |" * len(table.columns)]
    lines += ["| " + " | ".join(map(text, row)) + " |" for row in table.itertuples(index=False)]
    return "\n".join(lines) + "\n"


def interval(low: float, high: float) -> str:
    """An interval in words."""
    return "no interval" if math.isnan(low) or math.isnan(high) else f"{low:.2f} to {high:.2f}".replace("-", "−")


def mean_interval(errors: pd.Series) -> tuple[float, float, float]:
    """Mean of errors over seeds with its 95 % t interval; NaN bounds for fewer than two seeds.

    A diverged run (NaN) makes all of it NaN rather than drop out, as in inference.paired.
    """
    n, mean = len(errors), float(errors.mean(skipna=False))
    if n < 2:
        return mean, math.nan, math.nan
    half = float(stats.t.ppf(0.975, n - 1) * errors.std(ddof=1) / math.sqrt(n))
    return mean, mean - half, mean + half


def effect_table(lines: Sequence[Mapping[str, Any]], value: str = "difference, pp") -> pd.DataFrame:
    """Lines of an interval plot (label, value, low, high, n) as a table for readers."""
    return pd.DataFrame(
        [
            {
                "what": line["label"],
                value: line["value"],
                "95 % interval": interval(line["low"], line["high"]),
                "seeds": line["n"],
                **({"verdict": line["verdict"]} if "verdict" in line else {}),
            }
            for line in lines
        ]
    )


def margin(paper: pd.DataFrame) -> float:
    """The margin of no difference of the claims, as a part of the error."""
    return evidence.MARGIN / float(evidence.paper_grid(paper, "Fig1", "adam", "fixed").error.to_numpy().min())


def shapes(rows: pd.DataFrame, paper: pd.DataFrame) -> list[dict[str, Any]]:
    """Shape of the four cosine grids, one entry per algorithm and source: slope with interval, additive R2, regret.

    Names: algorithm, source (paper or ours), slope, low, high, r2, regret (pp, mean over starts), cells.
    """
    lines = []
    for algorithm in ALGORITHMS:
        for source, frame in (("paper", None), ("ours", rows)):
            if frame is None:
                grid = evidence.paper_grid(paper, "Fig2", algorithm, part="positive")
            else:
                grid = evidence.pivot(frame, algorithm, "cosine", "positive")
            sd = evidence.PAPER_SD if frame is None else evidence.pooled_sd(frame)
            line = dict.fromkeys(("slope", "low", "high", "r2", "regret"), math.nan)
            if min(grid.error.shape) >= 2 and not math.isnan(sd):
                alphas, decays = grid.error.index.to_numpy(float), grid.error.columns.to_numpy(float)
                line["slope"], line["low"], line["high"] = inference.bootstrap(
                    lambda error, a=alphas, d=decays, s=sd: inference.ridge_slope(error, a, d, s), [grid], sd
                )
                error = grid.error.to_numpy(float)
                finite = error[np.isfinite(error)]
                # one end of scale for both sources, as in the figures: what lies beyond says little about the basin
                line["r2"] = inference.additive_r2(error, cap=inference.ROW_BEST * float(finite.min()))
                line["regret"] = float(np.nanmean(inference.coordinate_regret(error)))
            lines.append({"algorithm": algorithm, "source": source, **line, "cells": int((grid.runs > 0).sum().sum())})
    return lines


def shape_table(rows: pd.DataFrame, paper: pd.DataFrame, names: Mapping[str, str]) -> pd.DataFrame:
    """`shapes` for readers: one row per algorithm, the paper beside ours."""
    table: dict[str, dict[str, Any]] = {}
    for part in shapes(rows, paper):
        line = table.setdefault(part["algorithm"], {"algorithm": names[part["algorithm"]]})
        who, slope = part["source"], part["slope"]
        told = "–" if math.isnan(slope) else f"{slope:.2f} ({interval(part['low'], part['high'])})".replace("-", "−")
        line |= {f"slope, {who}": told, f"regret, {who}": part["regret"], f"row + column R², {who}": part["r2"]}
    columns = [
        "algorithm",
        *(f"{what}, {who}" for what in ("slope", "regret", "row + column R²") for who in ("paper", "ours")),
    ]
    return pd.DataFrame(list(table.values()), columns=columns)


def gaps(rows: pd.DataFrame, paper: pd.DataFrame, schedules: Mapping[str, str]) -> pd.DataFrame:
    """Adam less AdamW by schedule: columns label, source, value, low, high, n (pp; ours on fresh seeds)."""
    lines = []
    for schedule, name in schedules.items():
        ours = [evidence.select(rows, a, schedule) for a in ("adam", "adamw")]
        best = [evidence.paper_grid(paper, "Fig1", a, schedule).error.min().min() for a in ("adam", "adamw")]
        lines.append(
            {"label": name, "source": "paper", "value": best[0] - best[1], "low": math.nan, "high": math.nan, "n": 1}
        )
        if None not in ours:
            adam, adamw = (evidence.fresh(rows, cell) for cell in ours if cell is not None)
            found = inference.paired(adam, adamw)
            lines.append(
                {"label": name, "source": "ours", **{k: getattr(found, k) for k in ("value", "low", "high", "n")}}
            )
    return pd.DataFrame(lines, columns=["label", "source", "value", "low", "high", "n"])


def error_table(
    rows: pd.DataFrame, paper: pd.DataFrame, schedules: Mapping[str, str], names: Mapping[str, str]
) -> pd.DataFrame:
    """Chosen cells of Adam and AdamW by schedule: ours with fresh seeds, and the paper's best cell."""
    lines = []
    for schedule, label in schedules.items():
        for algorithm in ("adam", "adamw"):
            theirs = evidence.paper_grid(paper, "Fig1", algorithm, schedule).error.stack()
            cell = evidence.select(rows, algorithm, schedule)
            errors = pd.Series(dtype=float) if cell is None else evidence.fresh(rows, cell)
            mean, low, high = mean_interval(errors)
            lines.append(
                {
                    "algorithm": names[algorithm],
                    "schedule": label,
                    "α, λ of ours": "–" if cell is None else f"{cell.alpha:g}, {cell.decay:g}",
                    "test error of ours, %": mean,
                    "95 % interval": interval(low, high),
                    "fresh seeds": len(errors),
                    "α, λ of the paper": "{:.2g}, {:.2g}".format(*theirs.idxmin()),  # type: ignore[misc]
                    "the paper's, %": float(theirs.to_numpy().min()),
                }
            )
    return pd.DataFrame(lines)


FITTED = 0.01  # nats of training loss; above it no network has learned its images by heart


def how_far(frame: pd.DataFrame, profile: str, numbers: pd.DataFrame) -> str:
    """How far training got at a profile, as a paragraph to read its verdicts with; '' without runs of the best AdamW.

    numbers: as `load_paper` gives NUMBERS.
    """
    rows, everything = (plan.rows(frame, profile, name) for name in ("grids", None))
    cell = evidence.select(rows, "adamw", "cosine")
    loss = math.nan if cell is None else float(evidence.fresh(rows, cell, "train_loss").mean(skipna=False))
    if math.isnan(loss):
        return ""
    error, lowest = evidence.fresh(rows, cell).mean(), everything["train_loss"].min()  # type: ignore[arg-type]
    below = math.floor(100 * lowest) / 100  # no run ends lower than that
    theirs = numbers.query("metric == 'train_loss' and algorithm == 'AdamW'")["value"].iloc[0]
    text = (
        f"*How far training got.* With cosine annealing the best AdamW of profile `{profile}` ends with a training "
        f"loss of {loss:.2f} nats and a test error of {error:.0f} %, and no run of the profile ends with a lower loss "
        f"than {below:.2f}. Guessing among ten classes gives {math.log(10):.2f}; the paper's long run of AdamW "
        f"ends at {theirs:g}."
    )
    if lowest > FITTED:
        text += (
            " Every verdict, *reproduced* or *contradicted*, is about this network and this budget; what larger ones "
            "do is open until a larger profile has run."
        )
    return text + "\n"


def values(frame: pd.DataFrame, profile: str, paper: pd.DataFrame) -> dict[str, Any]:
    """The numbers that prose quotes, nested by name; null where the runs give none."""
    rows = plan.rows(frame, profile, "grids")
    out: dict[str, Any] = {"paper": {"slope": {}}, "slope": {}}
    chosen = {}
    for algorithm in ALGORITHMS:
        cell = evidence.select(rows, algorithm, "cosine")
        chosen[algorithm] = pd.Series(dtype=float) if cell is None else evidence.fresh(rows, cell)
        out[algorithm] = {"cosine": {"error": _plain(mean_interval(chosen[algorithm])[0])}}
        theirs = evidence.paper_grid(paper, "Fig2", algorithm).error.min().min()
        out["paper"][algorithm] = {"cosine": {"error": _plain(theirs)}}
    found = inference.paired(chosen["adam"], chosen["adamw"])
    out["gap"] = {"cosine": {name: _plain(getattr(found, name)) for name in ("value", "low", "high")}}
    best = out["paper"]
    best["gap"] = {"cosine": best["adam"]["cosine"]["error"] - best["adamw"]["cosine"]["error"]}
    for line in shapes(rows, paper):
        target = best["slope"] if line["source"] == "paper" else out["slope"]
        target[line["algorithm"]] = {
            name: _plain(line[of]) for name, of in zip(SLOPE, ("slope", *SLOPE[1:]), strict=True)
        }
    adamw_error = out["adamw"]["cosine"]["error"]
    out["margin"] = None if adamw_error is None else margin(paper) * adamw_error
    out["published"] = {"profile": profile, **store.origin(frame)}
    out["made"] = {name: made(frame, profile, name) for name in plan.EXPERIMENTS}
    return out


def _plain(x: float) -> float | None:
    return float(x) if math.isfinite(x) else None


THEIRS = "_published"


def compare(local: pd.DataFrame, published: pd.DataFrame, profile: str) -> pd.DataFrame:
    """Experiment by experiment, how this machine's runs agree with the published ones of the same configuration.

    `same bits` counts runs whose whole loss curve and test error are equal. For the others: mean and largest
    difference in test error (pp; infinite where one of the two diverged), and the mean in units of its standard error
    if both were independent seeds; below 3 that is seed noise.
    """
    lines = []
    for name in plan.EXPERIMENTS:
        mine, theirs = plan.rows(local, profile, name), plan.rows(published, profile, name)
        both = mine.merge(theirs, on="key", suffixes=("", THEIRS))
        texts = [
            both[f"{number}{whose}"].map(repr) for number in ("test_error", "loss_curve") for whose in ("", THEIRS)
        ]
        same = (texts[0] == texts[1]) & (texts[2] == texts[3])  # as text, nan equals nan
        other = both[~same].fillna({"test_error": math.inf, f"test_error{THEIRS}": math.inf})
        difference = (other["test_error"] - other[f"test_error{THEIRS}"]).dropna()
        error = evidence.pooled_sd(theirs) * math.sqrt(2 / len(difference)) if len(difference) else math.nan
        lines.append(
            {
                "experiment": name,
                "runs here": len(mine),
                "published": len(theirs),
                "in both": len(both),
                "same bits": int(same.sum()),
                "mean difference, pp": difference.mean() if len(difference) else 0.0,
                "largest, pp": difference.abs().max() if len(difference) else 0.0,
                "in standard errors": difference.mean() / error if len(difference) else 0.0,
            }
        )
    return pd.DataFrame(lines)


def completeness(frame: pd.DataFrame, profile: str, experiment: str) -> str:
    """How much of an experiment's plan is there, without chosen cells, for example '31 of 63'."""
    runs = plan.grid_runs(experiment, profile, plan.dataset_of(frame, profile))
    return f"{len(store.select(frame, runs))} of {len(runs)}"


def made(frame: pd.DataFrame, profile: str, experiment: str) -> str:
    """Who made the runs of an experiment, and how many of its plan there are, for captions."""
    planned = plan.grid_runs(experiment, profile, plan.dataset_of(frame, profile))
    chooses = experiment in plan.CHOOSING  # the others show their planned runs and nothing else
    rows = plan.rows(frame, profile, experiment) if chooses else store.select(frame, planned)
    done = completeness(frame, profile, experiment)
    if rows.empty:
        return f"profile {profile}, no runs yet ({done} planned)"
    origin = store.origin(rows)
    return (
        f"profile {profile}, {origin['dataset']}, {done} planned runs"
        + (f" and {extra} repeats with other seeds" if (extra := len(rows) - int(done.split()[0])) > 0 else "")
        + (f", INCOMPLETE ({missing} missing)" if (missing := len(planned) - int(done.split()[0])) else "")
        + f", seeds {origin['seeds']}, {origin['hardware']}, commit {origin['commit']}"
    )


# --- this machine's own runs ------------------------------------------------------------------------------------------

NOTHING_HERE = "There are no runs on this machine yet. `make reproduce` makes them.\n"


def own_figure(results: store.Results, experiment: str, name: str, title: str) -> str:
    """The MyST text that shows a figure of this machine's runs, or says that there are none."""
    if not results.local_profile or plan.rows(results.local, results.local_profile, experiment).empty:
        return NOTHING_HERE
    return (
        f"```{{themed-figure}} ../generated/{name}-light.svg\n"
        f":alt: {title}, from this machine's runs beside the paper's\n:width: 100%\n\n"
        f"{title} on this machine: {made(results.local, results.local_profile, experiment)}.\n```\n"
    )


def provenance(published: Mapping[str, pd.DataFrame]) -> str:
    """Who made the published results, as MyST tables: one row per file, and per file one row per experiment."""
    files, parts = [], []
    for profile, frame in published.items():
        origin = store.origin(frame)
        days = sorted(str(when)[:10] for when in frame["finished"])
        files.append(
            {
                "file": f"`data/results/{profile}.parquet`",
                "runs": len(frame),
                "core or GPU hours": origin["hours"],
                "hardware": origin["hardware"],
                "made": f"{days[0]} to {days[-1]}" if days else "–",
            }
        )
        python, images = (", ".join(sorted(frame[name].unique())) for name in ("python", "fingerprint"))
        made_with = (
            f"Python {python}, PyTorch {origin['torch']}, {origin['dataset']} with fingerprint {images}, "
            f"commit {origin['commit']}."
        )
        lines = []
        for name in plan.EXPERIMENTS:
            rows = plan.rows(frame, profile, name)
            own = store.origin(rows)
            lines.append(
                {
                    "experiment": f"`{name}`",
                    "planned runs": completeness(frame, profile, name),
                    "runs shown": len(rows),
                    "diverged": int((rows["diverged_step"] >= 0).sum()),
                    "hours": own["hours"],
                    "seeds": own["seeds"],
                    "commit": own["commit"],
                }
            )
        parts.append(f"\n**Profile `{profile}`:** {made_with}\n\n{markdown(pd.DataFrame(lines))}")
    return (markdown(pd.DataFrame(files)) if files else "Nothing is published yet.\n") + "".join(parts)


def profile_table() -> str:
    """Every profile side by side, as a MyST table: what the runs of `plan.PROFILES` are made of."""

    def sizes(grids: Mapping[str, plan.Grid]) -> str:
        return ", ".join(sorted({f"{len(grid.alphas)} x {len(grid.decays) + 1}" for grid in grids.values()}))

    def several(numbers: Sequence[int]) -> str:
        return ", ".join(f"{number:,}" for number in numbers)

    columns: dict[str, dict[str, str]] = {}
    for name, profile in plan.PROFILES.items():
        runs = [run for experiment in plan.EXPERIMENTS for run in plan.grid_runs(experiment, name, "cifar10")]
        run = runs[0]
        columns[f"`{name}`"] = {
            "network": f"`{run.network}`, width {run.width}",
            "training images": f"{run.train_size:,}",
            "chosen on": "test" if run.train_size == TRAIN_IMAGES else "validation",
            "epochs": str(run.epochs),
            "batch size": str(run.batch_size),
            "augmentation": f"`{run.augment}`",
            "precision": f"`{run.precision}`",
            "cells per panel, grids": sizes(profile.grids),
            "cells per panel, schedules": sizes(profile.schedule_grids),
            "different runs in the grids": f"{len(set(runs)):,}",
            "fresh seeds of chosen cells": str(profile.fresh_seeds),
            "seeds of the studies, and of `tricks`": f"{profile.study_seeds}, {profile.trick_seeds}",
            "long budget, epochs": str(profile.long_epochs),
            "cycles of the restarts end after": several(profile.cycle_ends),
            "budgets of `normalized`, epochs": f"{several(profile.budgets)} ({profile.budget_seeds} seeds)",
            "other numbers of training images": several(profile.train_sizes),
            "other batch sizes": several(profile.batch_sizes),
            "fixed rate, epochs": str(profile.fixed_epochs),
            "other widths, in `tricks`": several(profile.widths),
        }
    fields: Sequence[str] = list(next(iter(columns.values())))
    return markdown(pd.DataFrame([{"profile": f} | {n: column[f] for n, column in columns.items()} for f in fields]))
