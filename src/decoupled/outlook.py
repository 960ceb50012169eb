"""How far a plan is, what is still to come, and what that costs before it starts."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import pandas as pd

from decoupled import plan
from decoupled.runs import RunConfig
from decoupled.sweep import Sweep, size, work


class Outlook(NamedTuple):
    """How far one experiment is."""

    experiment: str
    done: int
    planned: int  # the chosen cells are known, and counted, when the grid is done
    missing: list[RunConfig]  # without what an experiment before it trains; with stand-ins for chosen cells


def with_keys(keys: Sequence[str], profile: str, dataset: str) -> list[RunConfig]:
    """The runs of a profile that have these keys, repeats with other seeds included; ValueError names unknown keys."""
    planned = [run for name in plan.EXPERIMENTS for run in plan.grid_runs(name, profile, dataset)]
    seeds = range(plan.PROFILES[profile].fresh_seeds + 1)
    repeats = (replace(run, seed=seed) for run in planned for seed in seeds)
    known = {run.key(): run for run in (*planned, *repeats)}
    if unknown := [key for key in keys if key not in known]:
        raise ValueError(f"profile {profile} has no run with {dataset} images and key {', '.join(unknown)}")
    return [known[key] for key in dict.fromkeys(keys)]


def of(
    experiments: Sequence[str], profile: str, dataset: str, frame: pd.DataFrame, keys: Sequence[str] = ()
) -> list[Outlook]:
    """How far the experiments, or only the runs with these keys, are, given the rows of the finished runs."""
    have, out = set(frame["key"]), []
    if keys:
        runs = {run.key(): run for run in with_keys(keys, profile, dataset)}
        missing = [run for key, run in runs.items() if key not in have]
        return [Outlook("keys", len(runs) - len(missing), len(runs), missing)]
    counted = set(have)
    for name in experiments:
        runs = {run.key(): run for run in plan.grid_runs(name, profile, dataset)}
        unknown: list[RunConfig] = []
        if have.issuperset(runs):
            chosen = plan.winner_runs(name, profile, dataset, frame[frame["key"].isin(runs.keys())])
            runs |= {run.key(): run for run in chosen}
        else:
            unknown = [max(runs.values(), key=lambda run: work([run]))] * plan.chosen_count(name, profile)
        missing = [run for key, run in runs.items() if key not in counted]
        counted |= runs.keys()
        out.append(Outlook(name, len(have & runs.keys()), len(runs), missing + unknown))
    return out


def estimate(outlooks: Sequence[Outlook], sweep: Sweep) -> tuple[str, float]:
    """A table of what is still missing, and its hours; both at most, as chosen cells of a grid may coincide."""
    missing = [run for view in outlooks for run in view.missing]
    costs = {key: _costs(run) for key, run in {size(run): run for run in missing}.items()}
    workers, per_result = sweep.workers.count, sweep.store.bytes_per_result()
    checkpoints = workers * sweep.pack_size * max((weights for _, weights in costs.values()), default=0.0)
    form = "{:15} {:>9} {:>8} {:>8} {:>8} {:>10} {:>10}".format
    lines = [form("experiment", "done", "missing", "epochs", "FLOP", "hours", "disk, MB")]

    def add(name: str, done: int, planned: int, runs: Sequence[RunConfig], more_bytes: float) -> float:
        hours = sweep.seconds(runs) / workers / 3600
        flop = sum(work([run]) * costs[size(run)][0] for run in runs)
        disk = (len(runs) * per_result + more_bytes) / 1e6
        epochs = sum(run.epochs for run in runs)
        lines.append(form(name, f"{done}/{planned}", len(runs), epochs, f"{flop:.1e}", f"{hours:,.2f}", f"{disk:,.1f}"))
        return hours

    for view in outlooks:
        add(view.experiment, view.done, view.planned, view.missing, 0.0)
    done, planned = sum(view.done for view in outlooks), sum(view.planned for view in outlooks)
    hours = add("total", done, planned, missing, checkpoints)
    if missing:
        device = sweep.measure(missing[0]).device
        lines.append(f"at most, with {workers} worker(s) on {device}; in the total on disk, checkpoints while it runs")
    return "\n".join(lines), hours


def _costs(run: RunConfig) -> tuple[float, float]:
    """FLOP of a training step per image, and bytes of a checkpoint per run: weights and at most two buffers."""
    from decoupled import engine, models

    weights = models.parameter_count(run.network, run.width)
    return engine.step_flops(run), 3.0 * weights * (8 if run.precision == "float64" else 4)
