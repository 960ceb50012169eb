"""The explorer's files: their numbers are those of the Parquet file and of the paper's table, read by pandas alone.

Every command in them trains the runs of its cell.
"""

import gzip
import json
import math
import re
import shlex

import numpy as np
import pandas as pd
import pytest

from decoupled import explore, outlook, plan, report, store
from decoupled.__main__ import _parser, main
from decoupled.runs import KINDS, RunConfig
from decoupled.store import Store

ROOT = report.Path(__file__).parents[1]
FIGURES = {
    "grids": "Fig2",
    "schedules": "Fig1",
    "fixed_lr": "SuppFig2",
    "normalized": "SuppFig3",
    "imagenet32": "SuppFig3",
}
NAMES = {"sgd": "SGD", "sgdw": "SGDW", "adam": "Adam", "adamw": "AdamW"}
TWIN = {"sgd": "sgdw", "adam": "adamw"}  # under whose name runs without decay are stored


def read(folder):
    """All files by name; AssertionError for one that is not a single call with JSON."""
    found = {}
    for path in folder.glob("*.js"):
        call = re.fullmatch(r'exploreData\("([\w-]+)",(\{.*\})\);\n', path.read_text("ascii"))
        assert call and call[1] == path.stem
        found[call[1]] = json.loads(call[2])
    return found


@pytest.fixture(scope="module")
def published():
    return store.open_results(local_folder=str(ROOT / "data/none"), committed=str(ROOT / "data/results"))


@pytest.fixture(scope="module")
def paper():
    return pd.read_csv(ROOT / "data/paper/paper_figures.csv")


@pytest.fixture(scope="module")
def folder(published, paper, tmp_path_factory):
    to = tmp_path_factory.mktemp("explore")
    explore.write(to, published, paper)
    return to


@pytest.fixture(scope="module")
def maps(folder):
    return {name: data for name, data in read(folder).items() if name != "index"}


def split(name):
    """ours-schedules-adam-step -> ours, schedules, adam, [step]."""
    source, experiment, algorithm, *rest = name.split("-")
    return source, experiment, algorithm, rest


def rows_of(name, profile):
    """The rows of the committed Parquet file that belong to one of our maps."""
    _, experiment, algorithm, rest = split(name)
    size = plan.PROFILES[profile]
    wanted = {"decay_unit": "raw", "decayed": KINDS, "evaluations": 1, "snapshots": "", **size.setting}
    if experiment == "normalized":
        wanted["epochs"] = int(rest[0])
    if experiment == "fixed_lr":
        wanted |= {"epochs": size.fixed_epochs, "width": size.long_width}
    schedule = {"schedules": rest[:1], "fixed_lr": ["fixed"]}.get(experiment, ["cosine"])[0]
    frame = pd.read_parquet(ROOT / f"data/results/{profile}.parquet")
    for column, value in wanted.items():
        frame = frame[frame[column] == value]
    twin = (frame["decay"] == 0) & (frame["algorithm"] == TWIN.get(algorithm))
    frame = frame[((frame["algorithm"] == algorithm) | twin) & frame["schedule"].str.startswith(schedule)]
    return frame[frame["seed"] < size.budget_seeds] if experiment == "normalized" else frame


def test_our_numbers_are_those_of_the_parquet_file(maps, published):
    ours = {name: data for name, data in maps.items() if name.startswith("ours-")}
    assert len(ours) >= 4 + 6 + 1 and len({split(name)[1] for name in ours}) == 4
    for name, data in ours.items():
        rows = rows_of(name, published.profile)
        assert len(data["cells"]) == len(data["alphas"]) * len(data["decays"])
        for cell in data["cells"]:
            mine = rows[(rows["alpha"] == cell["alpha"]) & (rows["decay"] == cell["decay"])].sort_values("seed")
            assert len(mine), (name, cell["alpha"], cell["decay"])
            assert cell["error"] == pytest.approx(mine["test_error"].mean(), rel=1e-12), name
            assert cell["keys"] == list(mine["key"])
            for run, (_, row) in zip(cell["runs"], mine.iterrows(), strict=True):
                found = (run["seed"], run["test"], run["val"], run["loss"])
                assert found == (row["seed"], row["test_error"], row["val_error"], row["train_loss"])
                assert run["curve"] == pytest.approx(row["loss_curve"], rel=1e-4)


def test_every_cell_of_the_paper_is_there_once(maps, paper):
    found = []
    for name, data in maps.items():
        source, experiment, algorithm, rest = split(name)
        if source != "paper":
            continue
        panel = rest[0] if experiment == "schedules" else {"grids": "cosine", "fixed_lr": "fixed"}.get(experiment)
        panel = panel or f"{rest[0]}ep"
        unit = "norm" if experiment == "imagenet32" or rest[1:] == ["norm"] else "raw"
        where = FIGURES[experiment], panel, NAMES[algorithm], unit
        found += [(*where, c["alpha"], c["decay"], c["error"], c["state"]) for c in data["cells"]]
    expected = [
        (r.figure, r.panel, r.algorithm, r.wd_kind, r.lr, r.wd,
         *((None, "missing") if math.isnan(r.error_pct) else (r.error_pct, "bound" if r.saturated else "value")))
        for r in paper.itertuples()
    ]  # fmt: skip
    assert sorted(found, key=str) == sorted(expected, key=str) and len(found) == 1460


def test_every_command_trains_the_runs_of_its_cell(maps, published):
    planned: dict[str, dict[str, RunConfig]] = {}
    of_paper = 0
    for name, data in maps.items():
        source, _, algorithm, _ = split(name)
        for cell in (c for c in data["cells"] if "keys" in c):
            words = shlex.split(data["command"] + " " + " ".join(cell["keys"]))
            assert words[:3] == [".venv/bin/python", "-m", "decoupled"]
            args = _parser().parse_args(words[3:])
            assert str(args.store) == "data/again" and list(args.key) == cell["keys"]
            assert args.profile == (published.profile if source == "ours" else "paper")
            if args.profile not in planned:
                every = sorted({key for m in maps.values() if m["command"] == data["command"] for c in m["cells"]
                                for key in c.get("keys", [])})  # fmt: skip
                planned[args.profile] = dict(zip(every, outlook.with_keys(every, args.profile, "cifar10"), strict=True))
            for key, seed in zip(cell["keys"], [r["seed"] for r in cell.get("runs", [{"seed": 0}])], strict=True):
                run = planned[args.profile][key]
                assert run.key() == key and run.seed == seed
                assert run.algorithm == (algorithm if cell["decay"] else TWIN.get(algorithm, algorithm))
                assert run.alpha == pytest.approx(cell["alpha"], rel=1e-4)
                assert run.decay == pytest.approx(cell["decay"] * data["scale"], rel=1e-4)
            of_paper += source == "paper"
    assert of_paper >= 4 * 121 + 6 * 88  # all of Figures 1 and 2


def test_a_slope_falls_by_one_in_the_unit_of_torch(maps):
    turned = 0
    for data in (m for m in maps.values() if m["ridge"]):
        best = [(a, b) for a, b in zip(data["ridge"]["alphas"], data["ridge"]["best"], strict=True) if b]
        alpha, decay = np.array(best).T
        slope = data["ridge"]["slope"][0]
        assert np.polyfit(np.log2(alpha), np.log2(decay), 1)[0] == pytest.approx(slope, abs=1e-9)
        line = np.log2(np.array(data["ridge"]["line"])) - np.log2(np.array(data["ridge"]["alphas"]))
        assert np.diff(line) == pytest.approx(np.diff(np.log2(data["ridge"]["alphas"])) * (slope - 1), abs=1e-9)
        assert data["decoupled"] == (data["name"] in ("AdamW", "SGDW"))
        turned += data["decoupled"]
    assert turned >= 4


def test_normalized_decay_goes_over_into_decay_per_step(maps):
    for name, data in maps.items():
        _, experiment, _, rest = split(name)
        images = {"imagenet32": 1_281_167, "normalized": 50_000}.get(experiment, 0)  # ImageNet32's and CIFAR-10's
        normalized = experiment == "imagenet32" or rest[1:] == ["norm"]
        # Appendix B.1: lambda = lambda_norm sqrt(b / (B T)), with batches of 128
        wanted = math.sqrt(128 / (images * int(rest[0]))) if normalized else 1.0
        assert data["scale"] == pytest.approx(wanted, rel=1e-12) and data["normalized"] == normalized, name


def test_slopes_of_the_grids_are_those_that_the_book_quotes(maps, published, paper):
    quoted = report.values(published.published, published.profile, paper)
    for algorithm in NAMES:
        for source, values in (("ours", quoted["slope"]), ("paper", quoted["paper"]["slope"])):
            told = [values[algorithm][name] for name in ("value", "low", "high")]
            assert maps[f"{source}-grids-{algorithm}"]["ridge"]["slope"] == pytest.approx(told, abs=1e-12)


def test_the_index_names_every_file_and_all_are_small(folder, maps):
    index = read(folder)["index"]
    named = [f"{source}-{entry['id']}" for g in index["groups"] for entry in g["maps"] for source in entry["sources"]]
    assert sorted(named) == sorted(maps)
    pieces = [*folder.glob("*.js"), *(ROOT / "book/_static").glob("explore.*")]
    assert len(pieces) == len(maps) + 3
    assert sum(len(gzip.compress(path.read_bytes())) for path in pieces) < 0.3e6  # of 1.5 MB for the whole page
    # data/paper/README.md: two readings differ by 0.018 (rms), which is 0.013 for each
    assert round(index["reading"], 3) == 0.013 and round(index["reading"] * math.sqrt(2), 3) == 0.018


def test_diverged_and_missing_cells_have_no_number(published, paper, tmp_path):
    frame = published.published.copy()
    grid = frame[(frame["algorithm"] == "adamw") & frame["schedule"].eq("cosine") & frame["decay"].gt(0)]
    keys = {key for c in read_one(published, paper, tmp_path)["cells"] for key in c["keys"]}
    broken, gone = grid[grid["key"].isin(keys)].drop_duplicates(["alpha", "decay"]).iloc[:2].to_dict("records")
    same = (frame["alpha"] == gone["alpha"]) & (frame["decay"] == gone["decay"]) & (frame["algorithm"] == "adamw")
    at = frame.index[frame["key"] == broken["key"]]
    frame.loc[at, ["test_error", "val_error", "train_loss"]] = math.nan
    frame.loc[at, "diverged_step"] = 17
    (tmp_path / "ours-of-yesterday.js").write_text("")
    data = read_one(published._replace(published=frame[~same].reset_index(drop=True)), paper, tmp_path)
    cells = {(c["alpha"], c["decay"]): c for c in data["cells"]}
    first, second = (cells[row["alpha"], row["decay"]] for row in (broken, gone))
    assert first["state"] == "diverged" and first["error"] is None
    run = next(r for r, key in zip(first["runs"], first["keys"], strict=True) if key == broken["key"])
    assert (run["diverged"], run["test"]) == (17, None)
    assert second["state"] == "missing" and second["error"] is None and "runs" not in second
    assert not (tmp_path / "ours-of-yesterday.js").exists()


def test_without_results_of_ours_the_paper_is_still_there(published, paper, maps, tmp_path):
    explore.write(tmp_path, published._replace(published=published.published.iloc[:0]), paper)
    assert set(read(tmp_path)) == {"index", *(name for name in maps if name.startswith("paper-"))}


def read_one(results, paper, folder):
    explore.write(folder, results, paper)
    return read(folder)["ours-grids-adamw"]


# --- run --key --------------------------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty folder to work in, from which no images can be downloaded: smoke takes generated ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DATA_URL", raising=False)
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


def test_run_trains_the_runs_with_these_keys_and_nothing_else(elsewhere, capsys):
    run = plan.grid_runs("grids", "smoke", "generated")[3]
    fresh = RunConfig.from_dict(run.to_dict() | {"seed": 1})
    line = ["run", "--profile", "smoke", "--store", "again", "--workers", "1", "--key", run.key(), fresh.key()]
    assert main(line) == 0
    assert Store("again").keys() == {run.key(), fresh.key()}
    assert "keys: 0 done before, 2 trained, 0 failed" in capsys.readouterr().out
    assert main(line) == 0 and "keys: 2 done before, 0 trained" in capsys.readouterr().out


def test_an_unknown_key_is_one_line(elsewhere, capsys):
    known = plan.grid_runs("grids", "smoke", "generated")[0].key()
    assert main(["run", "--profile", "smoke", "--store", "again", "--dry-run", "--key", known, "0123456789abcdef"]) == 1
    error = capsys.readouterr().err
    assert error == "decoupled: profile smoke has no run with generated images and key 0123456789abcdef\n"
