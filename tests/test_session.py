"""How a notebook begins: the top folder, parameters that are refused in one line, training of what is missing."""

import os
import re
from pathlib import Path

import pytest
from made_up_plans import into, study

from decoupled import data, plan, session, store

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("start", [".", "notebooks", "src/decoupled"])
def test_the_top_folder_is_found_from_within(start: str, monkeypatch) -> None:
    monkeypatch.chdir(ROOT / start)
    assert session.to_root() == ROOT == Path.cwd()


def test_from_elsewhere_it_is_that_of_the_package(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert session.to_root() == ROOT


def test_a_copy_of_the_repository_wins_over_the_package(tmp_path, monkeypatch) -> None:
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "_config.yml").touch()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert session.to_root() == tmp_path.resolve()


@pytest.mark.parametrize("given", [["adamw", "adam"], '["adamw", "adam"]', "adam, adamw", ("adam", "adamw")])
def test_names_come_as_a_list_or_as_papermills_text(given) -> None:
    assert session.names("algorithms", given, ("sgd", "adam", "adamw")) == ("adam", "adamw")
    assert session.names("algorithms", "adam", ("sgd", "adam")) == ("adam",)


@pytest.mark.parametrize("given", [[], "", "nadam", ["adam", "nadam"], 3, None, '["adam"', [3], "[" * 10**5])
def test_bad_names_are_refused_in_one_line(given) -> None:
    with pytest.raises(ValueError, match=r"^algorithms must be a list of names out of sgd, adam, got .*$") as refused:
        session.names("algorithms", given, ("sgd", "adam"))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"profile": "huge"}, f"unknown profile 'huge'; known: auto, {', '.join(plan.PROFILES)}"),
        ({"train": "true"}, "train must be True or False, got 'true'"),
        ({"train": 1}, "train must be True or False, got 1"),
        ({"local_results": ""}, "local_results must be the name of a folder, got ''"),
        ({"local_results": 7}, "local_results must be the name of a folder, got 7"),
    ],
)
def test_bad_parameters_are_refused_in_one_line(changes, message, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    good = {"profile": "smoke", "local_results": "data/runs", "train": False}
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        session.begin(["grids"], **{**good, **changes})


def test_partial_results_are_counted(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(ROOT)
    into(tmp_path, study("smoke", "tricks").iloc[:3])
    results = session.begin(["tricks", "sgdr"], "smoke", str(tmp_path), False)
    assert len(results.local) == 3
    count = {name: len(plan.grid_runs(name, "smoke", "cifar10")) for name in ("tricks", "sgdr")}
    assert f"this machine: profile smoke, tricks 3 of {count['tricks']}" in capsys.readouterr().out


def test_a_narrow_plan_keeps_the_runs_that_stand_in_at_decay_0() -> None:
    runs = plan.grid_runs("grids", "smoke", "cifar10")
    kept = session._narrow(runs, ["adam"])
    assert {(run.algorithm, run.decay > 0) for run in kept} == {("adam", True), ("adamw", False)}
    assert session._narrow(runs, []) == runs


def test_what_is_missing_is_announced_and_trained_with_a_bar_once(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(data, "find", lambda *_, **__: data.generated())
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    assert session.train_missing(["fixed_lr"], "smoke", str(tmp_path)) == "smoke"
    shown = capsys.readouterr()
    grid = plan.grid_runs("fixed_lr", "smoke", "generated")
    frame = store.Store(tmp_path).frame()
    assert len(store.select(frame, grid)) == len(grid)
    winners = plan.winner_runs("fixed_lr", "smoke", "generated", store.select(frame, grid))
    assert winners and len(store.select(frame, winners)) == len(winners)
    assert re.search(r"fixed_lr +0/", shown.out) and "100%|" in shown.out  # the plan first, then the bar
    assert shown.err == ""
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    session.train_missing(["fixed_lr"], "smoke", str(tmp_path))
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")} == before


def test_more_than_a_day_is_not_started_from_a_notebook(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(data, "find", lambda *_, **__: data.generated())
    with pytest.raises(ValueError, match=r"^this would take about .* h; use `make reproduce PROFILE=smoke` for that$"):
        session.train_missing(["sgdr"], "smoke", str(tmp_path), limit=0.0)
    assert not list(tmp_path.glob("*.json")) and os.listdir(tmp_path) == []
