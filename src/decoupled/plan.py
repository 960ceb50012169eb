"""What should exist: every experiment as a list of runs per profile. No input or output."""

import dataclasses
import math
from collections.abc import Callable, Iterable

import pandas as pd

from decoupled.profiles import PROFILES, Grid
from decoupled.runs import RunConfig, one_of

RANK = ("paper", "gpu", "t4", "cpu")  # which published profile the book leads with, best first


def step_schedule(epochs: int) -> str:
    """The paper's step drops at 30, 60 and 80 % of the budget; the factor 0.1 is not stated there, we assume it."""
    return "step(0.1, " + ", ".join(f"{epochs * part:g}" for part in (0.3, 0.6, 0.8)) + ")"


def cell(profile: str, dataset: str, algorithm: str, alpha: float, decay: float, schedule: str, seed: int) -> RunConfig:
    """One run of a profile. Without decay the L2 and the decoupled form are one algorithm, stored under the latter."""
    if decay == 0:
        algorithm = without_decay(algorithm)
    setting: dict = PROFILES[profile].setting
    return RunConfig(algorithm, alpha, decay, schedule, dataset=dataset, seed=seed, **setting)


def without_decay(algorithm: str) -> str:
    """The name under which runs of `algorithm` with decay 0 are stored."""
    return {"sgd": "sgdw", "adam": "adamw"}.get(algorithm, algorithm)


def _grid_runs(profile: str, dataset: str, grids: dict[str, Grid], schedule: str) -> list[RunConfig]:
    return [
        cell(profile, dataset, algorithm, alpha, decay, schedule, seed=0)
        for algorithm, grid in grids.items()
        for alpha in grid.alphas
        for decay in (0.0, *grid.decays)
    ]


def grids(profile: str, dataset: str) -> list[RunConfig]:
    """Fig. 2: learning rate x decay for SGD, SGDW, Adam and AdamW under cosine annealing."""
    return _unique(_grid_runs(profile, dataset, PROFILES[profile].grids, "cosine"))


def schedule_grids(profile: str, dataset: str) -> list[RunConfig]:
    """Fig. 1: learning rate x decay for Adam and AdamW under a fixed rate, step drops and cosine annealing."""
    size = PROFILES[profile]
    texts = ("cosine", "fixed", step_schedule(int(size.setting["epochs"])))
    return _unique(r for text in texts for r in _grid_runs(profile, dataset, size.schedule_grids, text))


def _study(profile: str, dataset: str, algorithm: str, seed: int, **changes: str | float | int) -> RunConfig:
    """One run at the profile's best learning rate and decay of an algorithm, with some fields changed."""
    alpha, decay = PROFILES[profile].best[algorithm]
    return dataclasses.replace(cell(profile, dataset, algorithm, alpha, decay, "cosine", seed), **changes)  # type: ignore[arg-type]


def norm_of(run: RunConfig) -> float:
    """lambda_norm at which normalized decay of a run of one cycle would be its raw `decay` (Appendix B.1, inverted)."""
    return run.decay * (run.train_size * run.epochs / run.batch_size) ** 0.5


def _long(profile: str, epochs: int = 0) -> dict[str, str | int]:
    """Fields of a run over the long budget, or `epochs`, looked at whenever the first cycle's length has passed."""
    size = PROFILES[profile]
    epochs = epochs or size.long_epochs
    return {"epochs": epochs, "evaluations": epochs // size.first_cycle, "width": size.long_width}


def _seeds(profile: str) -> range:
    return range(1, PROFILES[profile].study_seeds + 1)


def generalization(profile: str, dataset: str) -> list[RunConfig]:
    """Fig. 3: Adam and AdamW over decays, each at its best learning rate, for the long budget; normalized for AdamW."""
    units = {"adam": "raw", "adamw": "normalized"}
    return _unique(
        _study(profile, dataset, algorithm, 0, decay=decay, decay_unit=units[algorithm], **_long(profile))
        for algorithm, decays in PROFILES[profile].long_decays.items()
        for decay in decays
    )


def restarts(profile: str, dataset: str) -> list[RunConfig]:
    """Fig. 4: AdamWR and SGDWR against one long cosine, and against cosine runs that end where their cycles end.

    The last are the control that the paper lacks. Decay is normalized, with one lambda_norm per algorithm: that of the
    best cell. AdamWR also runs with the decay of its first cycle kept for all, which normalized decay would lower.
    """
    size, out = PROFILES[profile], []
    restarting = f"restarts({size.first_cycle}, 2)"
    *ends, last = size.cycle_ends
    for seed in _seeds(profile):
        for algorithm in ("adamw", "sgdw"):
            best = _study(profile, dataset, algorithm, seed)
            shared = {"decay": norm_of(best), "decay_unit": "normalized", "width": size.long_width}
            cycles: dict = shared | {"schedule": restarting} | _long(profile, last)
            long: dict = shared | _long(profile)
            out += [dataclasses.replace(best, **fields) for fields in (cycles, long)]
            out += [dataclasses.replace(best, epochs=end, **shared) for end in ends]  # type: ignore[arg-type]
            if algorithm == "adamw":
                first = norm_of(best) / norm_of(dataclasses.replace(best, decay=1.0, epochs=size.first_cycle))
                out.append(dataclasses.replace(best, **cycles | {"decay": first, "decay_unit": "raw"}))
    return _unique(out)


def normalized(profile: str, dataset: str) -> list[RunConfig]:
    """Suppl. 3: AdamW over decays at several budgets, sizes of the training set and batch sizes.

    Under one cosine cycle a normalized decay is a raw one (`norm_of`), so these runs are both.
    """
    size = PROFILES[profile]
    best = size.best["adamw"][0]
    nearest = min(size.budget_alphas, key=lambda alpha: abs(math.log(alpha / best)))
    changes: list[dict] = [{"epochs": epochs} for epochs in size.budgets]
    changes += [{"train_size": images} for images in size.train_sizes]
    changes += [{"batch_size": images} for images in size.batch_sizes]
    return _unique(
        _study(profile, dataset, "adamw", seed, alpha=alpha, decay=decay, **change)
        for seed in range(size.budget_seeds)
        for change in changes
        for alpha in (size.budget_alphas if "epochs" in change else (nearest,))
        for decay in size.budget_decays
    )


def fixed_lr(profile: str, dataset: str) -> list[RunConfig]:
    """Suppl. 2: Adam at a fixed rate over a long budget, against AdamW with cosine annealing over a tenth of it."""
    size = PROFILES[profile]
    long = {"epochs": size.fixed_epochs, "width": size.long_width, "schedule": "fixed"}
    short = {"epochs": max(1, size.fixed_epochs // 10)}
    out = []
    for alpha in size.fixed.alphas:
        for decay in (0.0, *size.fixed.decays):
            run = cell(profile, dataset, "adam", alpha, decay, "fixed", 0)
            out.append(dataclasses.replace(run, **long))  # type: ignore[arg-type]
    out += [_study(profile, dataset, "adamw", 0, decay=k * size.best["adamw"][1], **short) for k in (1, 2, 4)]
    return _unique(out)


def sgdr(profile: str, dataset: str) -> list[RunConfig]:
    """SGDR's tables: SGD with L2 under step drops, one cosine and warm restarts, with snapshots for ensembles.

    Snapshots: the ends of the cycles, and the last three epochs, which should not help (SGDR, section 4.3).
    """
    size = PROFILES[profile]
    ends = size.cycle_ends[:3]
    epochs = ends[-1]
    kept = ",".join(map(str, sorted({*ends, *range(max(1, epochs - 2), epochs + 1)})))
    drops = "step(0.2, " + ", ".join(f"{epochs * part:g}" for part in (0.3, 0.6, 0.8)) + ")"  # 60, 120, 160 of 200
    equal = f"restarts({epochs / 2:g}, 1)"  # no claim rests on cycles of equal length: as many seeds as `tricks` has
    texts = {drops: "", "cosine": "", equal: "", f"restarts({size.first_cycle}, 2)": kept}
    shared = {"epochs": epochs, "evaluations": epochs // size.first_cycle}
    return _unique(
        _study(profile, dataset, "sgd", seed, schedule=text, snapshots=snapshots, **shared)
        for seed in _seeds(profile)
        for text, snapshots in texts.items()
        if text != equal or seed <= size.trick_seeds
    )


TOO_MUCH = 0.1  # of every weight per step while eta = 1: far above any best decay
COMMON = (1e-2, 1e-3, 1e-4)  # the decays that tutorials recommend, in whatever unit


def tricks(profile: str, dataset: str) -> list[RunConfig]:
    """The advice of tutorials: common decays in each unit, none, too much; which parameters; effect and model size.

    Units: the paper's lambda, torch's weight_decay = lambda / alpha (both AdamW), the L2 factor lambda' (Adam). The
    first two runs of a seed are SGD with L2 and SGDW at lambda = alpha lambda' / (1 - beta1), their steady-state map.
    """
    size, out = PROFILES[profile], []
    alpha, (sgd_alpha, sgd_decay) = size.best["adamw"][0], size.best["sgd"]
    for seed in _seeds(profile):
        out.append(_study(profile, dataset, "sgd", seed))
        mapped = sgd_alpha * sgd_decay / (1 - 0.9)
        out.append(_study(profile, dataset, "sgdw", seed, alpha=sgd_alpha, decay=mapped))
    for seed in range(1, size.trick_seeds + 1):
        for decay in (0.0, *COMMON, *(alpha * wd for wd in COMMON), TOO_MUCH):
            out.append(_study(profile, dataset, "adamw", seed, decay=decay))
        out += [_study(profile, dataset, "adam", seed, decay=decay) for decay in COMMON]
        out += [_study(profile, dataset, "adamw", seed, decayed=kinds) for kinds in ("weight", "weight+bias")]
        out.append(_study(profile, dataset, "adamw", seed))
        for width in size.widths:
            out += [_study(profile, dataset, "adamw", seed, width=width, **d) for d in ({}, {"decay": 0.0})]
    return _unique(out)


# in order of priority
EXPERIMENTS: dict[str, Callable[[str, str], list[RunConfig]]] = {
    "grids": grids,
    "schedules": schedule_grids,
    "restarts": restarts,
    "normalized": normalized,
    "generalization": generalization,
    "fixed_lr": fixed_lr,
    "sgdr": sgdr,
    "tricks": tricks,
}
CHOOSING = ("grids", "schedules", "generalization", "fixed_lr")  # their best cells are run again with fresh seeds


def grid_runs(experiment: str, profile: str, dataset: str) -> list[RunConfig]:
    """The runs of one experiment that are known beforehand, in order of priority. ValueError for unknown names."""
    one_of("profile", profile, PROFILES)
    one_of("experiment", experiment, EXPERIMENTS)
    return EXPERIMENTS[experiment](profile, dataset)


def choose(grid: pd.DataFrame, algorithm: str, schedule: str, decay: str) -> tuple[float, float] | None:
    """The chosen cell (alpha, decay) of one algorithm and schedule: lowest error of the seed-0 runs of `grid`.

    The error is that on the validation split; where a profile has none, as in the paper, it is the test error.
    decay: "positive" chooses among decays > 0, "zero" among the runs without decay, "any" among both. Diverged runs are
    never chosen; ties go to the smaller learning rate, then the smaller decay. None if `grid` has no such run.
    """
    positive = (grid["algorithm"] == algorithm) & (grid["decay"] > 0)
    zero = grid["algorithm"].isin((algorithm, without_decay(algorithm))) & (grid["decay"] == 0)
    wanted = {"positive": positive, "zero": zero, "any": positive | zero}[decay]
    mine = grid[wanted & (grid["schedule"] == schedule) & (grid["seed"] == 0) & (grid["diverged_step"] < 0)]
    if mine.empty:
        return None
    error = "test_error" if mine["val_error"].isna().all() else "val_error"
    best = mine.sort_values([error, "alpha", "decay"]).iloc[0]
    return float(best["alpha"]), float(best["decay"])


def winner_runs(experiment: str, profile: str, dataset: str, grid: pd.DataFrame) -> list[RunConfig]:
    """The chosen cells of a finished grid again, with fresh seeds 1, 2, ...: the runs on which test error is reported.

    For `grids` the best cell with and the best cell without decay of each algorithm, for the others that choose the
    best cell of each algorithm and schedule; no runs for those that do not. Seeds pair: the same seed means the same
    initialisation and order of images for every algorithm.
    """
    planned = {(r.algorithm, r.schedule, r.alpha, r.decay): r for r in grid_runs(experiment, profile, dataset)}
    chosen = []
    for algorithm, schedule, part in choices(experiment, profile, dataset):
        if found := choose(grid, algorithm, schedule, part):
            name = algorithm if found[1] else without_decay(algorithm)
            chosen.append(planned[name, schedule, *found])
    seeds = range(1, PROFILES[profile].fresh_seeds + 1)
    return _unique(dataclasses.replace(run, seed=seed) for seed in seeds for run in chosen)


def chosen_count(experiment: str, profile: str) -> int:
    """How many runs `winner_runs` gives at most."""
    return len(choices(experiment, profile, "cifar10")) * PROFILES[profile].fresh_seeds


def choices(experiment: str, profile: str, dataset: str) -> list[tuple[str, str, str]]:
    """(algorithm, schedule, part of the decays) of which the best cell is chosen."""
    if experiment not in CHOOSING:
        return []
    pairs = dict.fromkeys((run.algorithm, run.schedule) for run in grid_runs(experiment, profile, dataset) if run.decay)
    parts = ("positive", "zero") if experiment == "grids" else ("any",)
    return [(algorithm, schedule, part) for algorithm, schedule in pairs for part in parts]


def dataset_of(frame: pd.DataFrame, profile: str) -> str:
    """The images that a profile's stored runs were made with: real ones if there are any."""
    keys = set(frame["key"])

    def any_of(dataset: str) -> bool:
        return any(run.key() in keys for name in EXPERIMENTS for run in grid_runs(name, profile, dataset))

    return "generated" if any_of("generated") and not any_of("cifar10") else "cifar10"


def rows(frame: pd.DataFrame, profile: str, experiment: str | None = None) -> pd.DataFrame:
    """The rows of a profile, or of one of its experiments: the cells of its grids, at every seed."""
    dataset = dataset_of(frame, profile)
    names = EXPERIMENTS if experiment is None else (experiment,)
    cells = {dataclasses.replace(run, seed=0) for name in names for run in grid_runs(name, profile, dataset)}
    fields = [field.name for field in dataclasses.fields(RunConfig)]
    mine = [RunConfig.from_dict({**row, "seed": 0}) in cells for row in frame[fields].to_dict("records")]
    return frame[pd.Series(mine, index=frame.index, dtype=bool)].reset_index(drop=True)


def same_images(frame: pd.DataFrame, say: Callable[[str], None] = print) -> pd.DataFrame:
    """The rows of a frame without those that were made from other images than most of their data set, which are named.

    Results are comparable only if the images were the same, to the bit: their fingerprint is kept with every result.
    """
    out = frame
    for dataset, rows in frame.groupby("dataset"):
        most = rows["fingerprint"].value_counts().sort_index().idxmax()
        others = rows[rows["fingerprint"] != most]
        if len(others):
            made = f"made from other {dataset} images ({', '.join(sorted(set(others['fingerprint'])))}, not {most})"
            say(f"left out: {len(others)} of {len(rows)} runs, {made}: {', '.join(others['key'])}")
            out = out.drop(others.index)
    return out.reset_index(drop=True)


def _unique(runs: Iterable[RunConfig]) -> list[RunConfig]:
    return list(dict.fromkeys(runs))
