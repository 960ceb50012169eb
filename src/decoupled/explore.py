"""The data of the explorer: every heat map of the paper and of this book, each in a small file that the page loads.

A page that is opened from a disk may load scripts but no JSON, so each file is one call, `exploreData(name, {...});`.
The numbers are those that the figures draw: cells by `evidence`, lines by `chapters.ridge`, colours and scales of
`figures`.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd

from decoupled import chapters, evidence, figures, inference, plan, report, store
from decoupled.runs import RunConfig

COMMAND = ".venv/bin/python -m decoupled run --profile {profile} --store data/again --key"  # the keys follow
STOPS = 17  # colours of the scale between which the page interpolates
DIGITS = 5  # of a training loss in a curve; errors keep all of theirs

GROUPS = {  # in the order of the page
    "grids": "Figure 2: cosine annealing",
    "schedules": "Figure 1: three schedules",
    "normalized": "Suppl. Figure 3: budgets, raw decay",
    "normalized-norm": "Suppl. Figure 3: budgets, normalized decay",
    "imagenet32": "Suppl. Figure 3: ImageNet32",
    "fixed_lr": "Suppl. Figure 2: fixed rate, long budget",
}
FIGURES = {"grids": "Fig2", "schedules": "Fig1", "fixed_lr": "SuppFig2"}  # experiment -> figure of the paper's table
MAPS = {  # experiment -> its algorithms and schedules
    "grids": (report.ALGORITHMS, ("cosine",)),
    "schedules": (("adam", "adamw"), tuple(figures.SCHEDULE_NAMES)),
    "fixed_lr": (("adam",), ("fixed",)),
}
FIGURE_NAMES = {"Fig1": "Figure 1", "Fig2": "Figure 2", "SuppFig2": "Suppl. Figure 2", "SuppFig3": "Suppl. Figure 3"}


def write(folder: Path, results: store.Results, paper: pd.DataFrame) -> None:
    """One file per map, and index.js, which names them; files of earlier maps are removed.

    paper: as `report.load_paper` gives it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.js"):
        stale.unlink()
    groups: dict[str, dict[str, dict[str, Any]]] = {group: {} for group in GROUPS}
    for source, maps in (("paper", paper_maps(paper)), ("ours", our_maps(results.published, results.profile))):
        for group, name, label, data in maps:
            title = ", ".join(dict.fromkeys((data["name"], label.split(", ")[-1])))
            _call(folder, f"{source}-{name}", data | {"title": title})
            groups[group].setdefault(name, {"id": name, "label": label, "sources": []})["sources"].append(source)
    for entry in groups["normalized"].values():  # the two have other budgets
        entry["label"] += {("paper",): ", paper", ("ours",): ", ours"}.get(tuple(entry["sources"]), "")
    colours = matplotlib.colormaps[figures.MAP](np.linspace(0, 1, STOPS))
    index = {
        "groups": [{"title": GROUPS[group], "maps": list(maps.values())} for group, maps in groups.items() if maps],
        "colours": [matplotlib.colors.to_hex(colour) for colour in colours],
        "reading": reading_error(paper),
    }
    _call(folder, "index", index)


def _call(folder: Path, name: str, data: Mapping[str, Any]) -> None:
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))  # ASCII: all that JSON allows is JavaScript too
    (folder / f"{name}.js").write_text(f"exploreData({json.dumps(name)},{text});\n")


Labelled = tuple[str, str, str, dict[str, Any]]  # group, name, label among its group, the map


def our_maps(frame: pd.DataFrame, profile: str) -> Iterator[Labelled]:
    """The maps of the runs of a profile; none for an experiment without runs."""
    for experiment, (algorithms, schedules) in MAPS.items():
        rows, made = plan.rows(frame, profile, experiment), report.made(frame, profile, experiment)
        sd = evidence.pooled_sd(rows) if len(rows) else math.nan
        for algorithm, schedule in ((a, s) for s in schedules for a in algorithms):
            if len(part := evidence.runs(rows, algorithm, schedule)):
                data = _of_runs(part, made, profile, experiment, algorithm, sd)
                yield experiment, _name(experiment, algorithm, schedule), _label(experiment, algorithm, schedule), data
    rows, made = chapters.planned(frame, profile, "normalized"), report.made(frame, profile, "normalized")
    for epochs, part in chapters.sizes(rows, profile, "epochs").items():
        data = _of_runs(part, made, profile, "normalized", "adamw", evidence.pooled_sd(part))
        yield "normalized", f"normalized-adamw-{epochs}", _epochs(epochs), data


def paper_maps(paper: pd.DataFrame) -> Iterator[Labelled]:
    """The maps of the paper: all its digitised cells, each once."""
    for experiment, (algorithms, schedules) in MAPS.items():
        for algorithm, schedule in ((a, s) for s in schedules for a in algorithms):
            cells = paper[(paper["figure"] == FIGURES[experiment]) & (paper["panel"] == schedule)]
            cells = cells[cells["algorithm"].str.lower() == algorithm]
            sd = math.nan if experiment == "fixed_lr" else evidence.PAPER_SD
            names = _name(experiment, algorithm, schedule), _label(experiment, algorithm, schedule)
            yield experiment, *names, _of_paper(cells, experiment, sd)
    budgets = paper[paper["figure"] == "SuppFig3"]
    for (dataset, unit, epochs, name), cells in budgets.groupby(["dataset", "wd_kind", "epochs", "algorithm"]):
        algorithm = str(name).lower()
        if dataset == "CIFAR-10":
            group = "normalized" if unit == "raw" else "normalized-norm"
            end = "" if unit == "raw" else "-norm"
            yield (
                group,
                f"normalized-{algorithm}-{epochs}{end}",
                _epochs(epochs),
                _of_paper(cells, "normalized", evidence.PAPER_SD),
            )
        else:  # top-5 errors, whose spread between seeds nobody knows
            label = f"{evidence.LABELS[algorithm]}, {_epochs(epochs)}"
            yield "imagenet32", f"imagenet32-{algorithm}-{epochs}", label, _of_paper(cells, "", math.nan)


def _name(experiment: str, algorithm: str, schedule: str) -> str:
    return f"{experiment}-{algorithm}" + (f"-{schedule}" if len(MAPS[experiment][1]) > 1 else "")


def _label(experiment: str, algorithm: str, schedule: str) -> str:
    if len(MAPS[experiment][1]) > 1:
        return f"{evidence.LABELS[algorithm]}, {figures.SCHEDULE_NAMES[schedule]}"
    return figures.NAMES[algorithm]


def _epochs(epochs: Any) -> str:
    return f"{epochs} epoch" + ("s" if epochs != 1 else "")


# --- one map ----------------------------------------------------------------------------------------------------------


def _of_runs(rows: pd.DataFrame, made: str, profile: str, experiment: str, algorithm: str, sd: float) -> dict[str, Any]:
    grid = evidence.as_grid(rows)
    shape = _shape(grid, algorithm, sd, experiment == "grids")
    runs: Mapping[Any, pd.DataFrame] = {
        cell: part.sort_values("seed") for cell, part in rows.groupby(["alpha", "decay"])
    }
    cells = []
    for (i, j), error in np.ndenumerate(grid.error.to_numpy(float)):
        alpha, decay = shape["alphas"][i], shape["decays"][j]
        mine = runs.get((alpha, decay))
        state = "missing" if mine is None else "diverged" if (mine["diverged_step"] >= 0).any() else "value"
        cell: dict[str, Any] = {"alpha": alpha, "decay": decay, "error": _plain(error), "state": state}
        if mine is not None:
            cell["keys"] = list(mine["key"])
            cell["runs"] = [
                {
                    "seed": int(run["seed"]),
                    "test": _plain(run["test_error"]),
                    "val": _plain(run["val_error"]),
                    "loss": _plain(run["train_loss"]),
                    "diverged": int(run["diverged_step"]) if run["diverged_step"] >= 0 else None,
                    "curve": [_plain(float(f"{x:.{DIGITS}g}")) for x in run["loss_curve"]],
                }
                for run in mine.to_dict("records")
            ]
        cells.append(cell)
    return {
        **shape,
        "cells": cells,
        "reach": figures.REACH["ours"],
        "metric": "test error",
        "made": made,
        "command": COMMAND.format(profile=profile),
    }


def _of_paper(panel: pd.DataFrame, experiment: str, sd: float) -> dict[str, Any]:
    """A panel of the paper, with the keys of the runs of profile `paper` that are the same cells, where there are."""
    grid = evidence.as_grid(evidence.paper_runs(panel))
    first = panel.iloc[0]
    epochs, images = int(first["epochs"]), evidence.IMAGES[first["dataset"]]
    normalized = first["wd_kind"] == "norm"
    scale = math.sqrt(evidence.PAPER_BATCH / (images * epochs)) if normalized else 1.0
    algorithm = str(first["algorithm"]).lower()
    planned = plan.grid_runs(experiment, "paper", "cifar10") if experiment else []
    schedule = first["panel"] if first["panel"] in figures.SCHEDULE_NAMES else "cosine"
    planned = [run for run in planned if run.epochs == epochs and run.schedule.startswith(schedule) and run.seed == 0]
    cells = []
    for row in panel.to_dict("records"):
        state = "missing" if math.isnan(row["error_pct"]) else "bound" if row["saturated"] else "value"
        cell = {"alpha": row["lr"], "decay": row["wd"], "error": _plain(row["error_pct"]), "state": state}
        if run := _same(planned, algorithm, row["lr"], row["wd"] * scale):
            cell["keys"] = [run.key()]
        cells.append(cell)
    where = f"Loshchilov and Hutter, {FIGURE_NAMES[first['figure']]}"
    return {
        **_shape(grid, algorithm, sd, experiment == "grids", scale if normalized else None),
        "cells": cells,
        "reach": figures.REACH["paper"],
        "metric": "test error" if first["metric"] == "top1" else "top-5 error",
        "made": f"{where}; {first['dataset']}, Shake-Shake 26 {first['net']}, {_epochs(epochs)}",
        "command": COMMAND.format(profile="paper --yes"),
    }


def _shape(grid: inference.Grid, algorithm: str, sd: float, judged: bool, scale: float | None = None) -> dict[str, Any]:
    """Axes, and the line through the best decays, as the figures have them; its slope, with an interval if `judged`.

    Only the grids are large enough for the interval, and only they are judged by it.
    """
    ridge = chapters.ridge(grid, sd)
    data: dict[str, Any] = {
        "name": figures.NAMES[algorithm],
        "decoupled": algorithm in evidence.DECOUPLED.values(),
        "normalized": scale is not None,
        "scale": 1.0 if scale is None else scale,  # decay per step over the decay of the axis
        "alphas": grid.error.index.tolist(),
        "decays": grid.error.columns.tolist(),
        "ridge": None,
    }
    if ridge is not None:
        part = chapters.positive(grid.error)
        alphas, decays = part.index.to_numpy(float), part.columns.to_numpy(float)

        def slope(error: np.ndarray) -> np.ndarray:
            return inference.ridge_slope(error, alphas, decays, sd)

        found = (float(slope(part.to_numpy(float))), math.nan, math.nan)
        if judged:
            found = inference.bootstrap(slope, [grid._replace(error=part, runs=chapters.positive(grid.runs))], sd)
        best, line, told = ([_plain(x) for x in values] for values in (ridge.best, ridge.line, found))
        data["ridge"] = {"alphas": list(ridge.alphas), "best": best, "line": line, "slope": told}
    return data


def _same(runs: Sequence[RunConfig], algorithm: str, alpha: float, decay: float) -> RunConfig | None:
    """The run of that cell; the paper's axes are printed with six digits."""
    name = algorithm if decay else plan.without_decay(algorithm)
    wanted = (run for run in runs if run.algorithm == name and math.isclose(run.alpha, alpha, rel_tol=1e-4))
    return next((run for run in wanted if math.isclose(run.decay, decay, rel_tol=1e-4)), None)


def reading_error(paper: pd.DataFrame) -> float:
    """Repeatability of the reading, pp: root mean square difference of the cells shown twice, per reading."""
    twice = [paper[(paper["figure"] == figure) & (paper["panel"] == "cosine")] for figure in ("Fig1", "Fig2")]
    both = twice[0].merge(twice[1], on=["algorithm", "lr", "wd"])
    return float(np.sqrt(np.mean((both["error_pct_x"] - both["error_pct_y"]) ** 2) / 2))


def _plain(x: float) -> float | None:
    return float(x) if math.isfinite(x) else None
