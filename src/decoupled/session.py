"""What every notebook begins with: the top folder, checked parameters, training of what is missing, the results.

A notebook is an instrument: it may be started from any folder of the repository, with other parameters, and with
`train = True` it first carries its own experiment out, by the same sweep as `python -m decoupled run`.
"""

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pandas as pd

from decoupled import plan, store
from decoupled.runs import RunConfig

LIMIT_HOURS = 24.0  # a notebook starts nothing longer


def to_root() -> Path:
    """Make the top folder of the repository the current folder: paths are the same wherever a notebook was started.

    It is the first folder, upward from here and then from this file, with _config.yml and notebooks/; else ValueError.
    """
    for start in (Path.cwd(), Path(__file__).resolve().parent):
        for folder in (start, *start.parents):
            if (folder / "_config.yml").is_file() and (folder / "notebooks").is_dir():
                os.chdir(folder)
                return folder
    raise ValueError(f"{Path.cwd()} is not in a copy of the repository; start the notebook from its top folder")


def names(parameter: str, value: object, known: Iterable[str]) -> tuple[str, ...]:
    """A list of names in the order of `known`; papermill's -p hands lists over as text. ValueError for any other."""
    known = tuple(known)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = [part.strip() for part in str(value).split(",")]
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, Sequence) or not given or any(name not in known for name in given):
        raise ValueError(f"{parameter} must be a list of names out of {', '.join(known)}, got {value!r}")
    return tuple(name for name in known if name in given)


def begin(
    experiments: Sequence[str], profile: str, local_results: str, train: bool, algorithms: Sequence[str] = ()
) -> store.Results:
    """Check the parameters of a notebook, train what is missing if asked to, and say what there is to show.

    algorithms: train only runs of these, and of those that stand in for them at decay 0; all if there are none.
    """
    to_root()
    if type(train) is not bool:
        raise ValueError(f"train must be True or False, got {train!r}")
    if type(local_results) is not str or not local_results:
        raise ValueError(f"local_results must be the name of a folder, got {local_results!r}")
    plan.one_of("profile", profile, ("auto", *plan.PROFILES))
    if train:
        profile = train_missing(experiments, profile, local_results, algorithms)
    results = store.open_results(profile, local_results)
    for whose, name, frame in (
        ("published", results.profile, results.published),
        ("this machine", results.local_profile, results.local),
    ):
        counts = [f"{experiment} {done(frame, name, experiment)}" for experiment in experiments if len(frame)]
        print(f"{whose}: {f'profile {name}, ' + ', '.join(counts) if counts else 'nothing yet'}")
    return results


def done(frame: pd.DataFrame, profile: str, experiment: str) -> str:
    """How many of an experiment's planned runs are there, for example '31 of 196'."""
    runs = plan.grid_runs(experiment, profile, plan.dataset_of(frame, profile))
    return f"{len(store.select(frame, runs))} of {len(runs)}"


def train_missing(
    experiments: Sequence[str], profile: str, folder: str, algorithms: Sequence[str] = (), limit: float = LIMIT_HOURS
) -> str:
    """Say what is missing and what it costs, and train it with a live bar; returns the profile that `auto` stood for.

    First the grids, then their chosen cells with fresh seeds. ValueError if it would take more than `limit` hours,
    RuntimeError if runs failed; both in one line. What is finished is kept, and another call goes on from there.
    """
    from decoupled import data, engine, outlook, sweep, workers

    if profile == "auto":
        profile = engine.default_profile()
    device = "cpu" if profile in ("smoke", "cpu") or engine.default_device() == "cpu" else None
    images = data.find(None, required=profile not in ("smoke", "cpu"))
    local = store.Store(folder)
    local.open_for_writing()
    crew = workers.Local(workers.slots(device or engine.default_device()))
    failed: dict[str, str] = {}
    try:
        sweeper = sweep.Sweep(local, crew, device=device, data_folder=None)
        views = [
            view._replace(missing=_narrow(view.missing, algorithms))
            for view in outlook.of(experiments, profile, images.source, local.frame())
        ]
        print(f"profile {profile}: {plan.PROFILES[profile].about}")
        table, hours = outlook.estimate(views, sweeper)
        print(table)
        if hours > limit:
            raise ValueError(f"this would take about {hours:,.0f} h; use `make reproduce PROFILE={profile}` for that")
        for name in experiments:
            grid = _narrow(plan.grid_runs(name, profile, images.source), algorithms)
            with _bar_on_stdout():
                failed |= sweeper.carry_out(grid).failed
            chosen = plan.winner_runs(name, profile, images.source, store.select(local.frame(), grid))
            with _bar_on_stdout():
                failed |= sweeper.carry_out(_narrow(chosen, algorithms)).failed
    finally:
        crew.shutdown()
    if failed:
        raise RuntimeError(f"{len(failed)} run(s) failed; the first: {next(iter(failed.values()))}")
    return profile


def _narrow(runs: Sequence[RunConfig], algorithms: Sequence[str]) -> list[RunConfig]:
    """The runs of these algorithms, all if none is named; a run without decay serves both forms."""
    without = {plan.without_decay(algorithm) for algorithm in algorithms}
    return [
        run
        for run in runs
        if not algorithms or run.algorithm in algorithms or (run.decay == 0 and run.algorithm in without)
    ]


class _Live(io.TextIOBase):
    """A stream that shows a progress bar in a notebook: a sweep draws one only where it believes in a terminal."""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        return sys.stdout.write(text)

    def flush(self) -> None:
        sys.stdout.flush()


@contextlib.contextmanager
def _bar_on_stdout() -> Iterator[None]:
    with contextlib.redirect_stderr(_Live()):
        yield
