"""What chapters show: curves, sweeps, tables and ensembles, on results made by hand."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_up_plans import diverge, study

from decoupled import advice, chapters, evidence, inference, plan, report, sgdr

PAPER, NUMBERS = report.load_paper(), report.load_paper(report.NUMBERS)
FRAME = study("cpu", "restarts", "normalized", "generalization", "sgdr", "tricks", noise=0.0)
NONE = FRAME.iloc[:0]


def rows_of(name: str, frame: pd.DataFrame = FRAME) -> pd.DataFrame:
    return chapters.planned(frame, "cpu", name)


# --- curves -----------------------------------------------------------------------------------------------------------


def test_a_curve_leaves_diverged_runs_out() -> None:
    rows = chapters.restart_parts(rows_of("restarts"), "cpu")["AdamWR"]
    whole = chapters.curve("x", rows, "test_curve", 0, at_evaluations=True)
    assert (len(whole.seeds), whole.x) == (5, [5, 10, 15, 20, 25, 30, 35])
    assert len(chapters.curve("x", diverge(rows, 1), "test_curve", 0, at_evaluations=True).seeds) == 4
    assert chapters.curve("x", rows.iloc[:0], "loss_curve", 0).seeds == []


def test_chosen_cells_at_an_end_of_what_was_tried_are_named() -> None:
    def bowl(alpha: float, decay: float) -> pd.DataFrame:
        """A grid whose errors rise from there in every direction, for all algorithms alike."""
        rows = pd.DataFrame([run.to_dict() | {"key": run.key()} for run in plan.grid_runs("grids", "cpu", "cifar10")])
        scale = rows["algorithm"].str.startswith("sgd").map({True: 1.0, False: 0.08})
        away = np.log2(rows["alpha"] / scale / alpha) ** 2 + np.log2((rows["decay"] + 1e-9) / decay) ** 2
        return rows.assign(val_error=40 + away, test_error=40 + away, diverged_step=-1)

    assert chapters.at_the_edge(bowl(0.2, 2e-3), "cpu", "grids") == (
        "No chosen cell lies at an end of the learning rates or decays that were tried.\n"
    )
    fast, slow = (chapters.at_the_edge(bowl(alpha, 2e-3), "cpu", "grids") for alpha in (0.4, 0.05))
    for name in ("SGD", "SGDW", "Adam", "AdamW", "SGDW without decay", "AdamW without decay"):
        assert f" {name} at its largest learning rate, 0." in fast and f" {name} at its smallest learning rate" in slow
    assert "SGD without" not in fast and fast.count("SGDW without") == 1  # the same runs, named once
    strong = chapters.at_the_edge(bowl(0.2, 1.0), "cpu", "grids")
    assert "AdamW at its largest decay, 0.016" in strong and "Adam at its largest L2 factor, 0.032" in strong
    assert "learning rate," not in strong
    half = chapters.at_the_edge(bowl(0.2, 2e-3).query("alpha < 0"), "cpu", "grids")  # nothing there: nothing chosen
    assert half.startswith("No chosen cell")


def test_the_parts_of_restarts_are_all_of_it() -> None:
    parts = chapters.restart_parts(rows_of("restarts"), "cpu")
    assert sum(map(len, parts.values())) == len(plan.grid_runs("restarts", "cpu", "cifar10"))
    assert {name: len(part) for name, part in parts.items()} == {
        "AdamWR": 5, "AdamW": 5, "AdamW, short": 10, "SGDWR": 5, "SGDW": 5, "SGDW, short": 10, "AdamWR, raw decay": 5,
    }  # fmt: skip


def test_at_the_end_of_a_cycle_restarts_meet_the_cosine_that_ends_there() -> None:
    rows = rows_of("restarts")
    table = chapters.restart_table(rows, "cpu").set_index(["optimizer", "after epochs"])
    parts = chapters.restart_parts(rows, "cpu")
    at_15 = parts["AdamWR"]["test_curve"].map(lambda curve: curve[2])  # epochs 5, 10, 15
    short = parts["AdamW, short"].query("epochs == 15")["test_error"]
    line: Any = table.loc[("AdamW", 15)]
    assert line["with restarts"] == pytest.approx(at_15.mean())
    assert line["cosine that ends here"] == pytest.approx(short.mean())
    assert line["difference (95 % interval)"].startswith(f"{at_15.mean() - short.mean():+.2f}".replace("-", "−"))
    assert table.index.get_level_values(1).unique().tolist() == [5, 15, 35]
    assert (chapters.restart_table(rows.iloc[:0], "cpu")["seeds"] == 0).all()


def test_at_equal_loss_two_shifted_lines_are_their_distance_apart() -> None:
    def run(algorithm: str, loss: float, error: float) -> dict:
        return {
            "algorithm": algorithm,
            "seed": 0,
            "diverged_step": -1,
            "decay": loss,
            "train_loss": loss,
            "test_error": error,
        }

    points = [
        (name, math.exp(x), 2 * x + up) for name, up in (("adam", 11.0), ("adamw", 10.0)) for x in (0.0, 1.0, 2.0)
    ]
    table = chapters.at_equal_loss(pd.DataFrame([run(*point) for point in points]))
    assert table["Adam minus AdamW"].tolist() == pytest.approx([1.0, 1.0, 1.0])
    assert chapters.at_equal_loss(pd.DataFrame([run(*point) for point in points[:3]])).empty


# --- sweeps over decay ------------------------------------------------------------------------------------------------


def test_by_decay_takes_the_best_learning_rate_and_drops_diverged_cells() -> None:
    shared = {"train_size": 400, "epochs": 4, "batch_size": 100}
    lines = [
        {"decay": d, "alpha": a, "seed": s, "test_error": e, "diverged_step": -1, **shared}
        for d, a, s, e in [(1.0, 1, 0, 5.0), (1.0, 2, 0, 4.0), (2.0, 1, 0, 3.0), (2.0, 2, 0, 2.0), (2.0, 2, 1, 2.5)]
    ]
    table = chapters.by_decay(pd.DataFrame(lines))
    assert table.mean().tolist() == [4.0, 2.25] and list(map(float, table.columns)) == [1.0, 2.0]
    scaled = chapters.by_decay(pd.DataFrame(lines), "normalized")
    assert list(map(float, scaled.columns)) == [4.0, 8.0]  # sqrt(400 * 4 / 100)
    lines[3] |= {"diverged_step": 7, "test_error": math.nan}
    assert chapters.by_decay(pd.DataFrame(lines)).mean().tolist() == [4.0, 3.0]


def test_sizes_change_one_field_at_a_time() -> None:
    rows = rows_of("normalized")
    assert {field: list(chapters.sizes(rows, "cpu", field)) for field in chapters.SIZES} == {
        "epochs": [5, 10, 20, 40],
        "train_size": [704, 1408, 2816],
        "batch_size": [64, 128, 256],
    }
    assert chapters.sizes(rows.iloc[:0], "cpu", "epochs") == {}


def test_the_best_decay_of_made_up_runs_falls_as_they_were_made() -> None:
    rows = study("cpu", "normalized", noise=0.05)
    rows = rows_of("normalized", rows)
    table, (value, low, high) = chapters.optima(chapters.sizes(rows, "cpu", "epochs"), "ours")
    assert value == pytest.approx(-0.5, abs=0.1) and low < value < high  # made with 1 / sqrt(epochs)
    assert table["value"].tolist() == pytest.approx([4e-3 * math.sqrt(20 / t) for t in (5, 10, 20, 40)], rel=0.15)


def test_a_missing_cell_leaves_no_exponent() -> None:
    rows = rows_of("normalized", study("cpu", "normalized"))
    parts = chapters.sizes(rows, "cpu", "epochs")
    parts[40] = parts[40][parts[40]["decay"] != parts[40]["decay"].min()]
    table, slope = chapters.optima(parts, "ours")
    assert table["value"].isna().all() and all(map(math.isnan, slope))


def test_the_papers_exponent_is_the_claims_own() -> None:
    _, slope = chapters.optima(chapters.paper_budgets(PAPER), "paper", evidence.PAPER_SD)
    judged = report.judge(NONE, "cpu", PAPER).set_index("id")
    assert f"{slope[0]:+.2f}" == judged.loc["C19", "paper"]


def test_the_ridge_is_the_line_of_the_slope() -> None:
    grid = evidence.paper_grid(PAPER, "Fig2", "sgd")
    ridge = chapters.ridge(grid, evidence.PAPER_SD)
    assert ridge is not None
    rise = np.diff(np.log2(ridge.line)) / np.diff(np.log2(ridge.alphas))
    error = chapters.positive(grid.error)
    alphas, decays = error.index.to_numpy(float), error.columns.to_numpy(float)
    assert rise == pytest.approx(float(inference.ridge_slope(error.to_numpy(float), alphas, decays, evidence.PAPER_SD)))
    assert chapters.ridge(grid, math.nan) is None
    assert chapters.ridge(inference.Grid(grid.error.iloc[:2], grid.runs.iloc[:2], 0), 0.1) is None


# --- SGDR -------------------------------------------------------------------------------------------------------------


def test_sgdr_stands_beside_the_printed_medians() -> None:
    table = sgdr.error_table(rows_of("sgdr"), NUMBERS).set_index("schedule")
    assert table["its median of five, %"].tolist() == [4.13, 3.86, 4.07, 4.03]  # SGDR, Table 1, CIFAR-10
    assert table["seeds"].tolist() == [5, 5, 3, 5]  # study_seeds, and trick_seeds where no claim is judged
    assert (sgdr.error_table(rows_of("sgdr", NONE), NUMBERS)["seeds"] == 0).all()
    printed = sgdr.printed_ensembles(NUMBERS)
    assert printed.loc[3, 16] == 3.14 and printed.shape == (3, 6)


def test_an_ensemble_of_one_snapshot_is_the_run_itself() -> None:
    rows = rows_of("sgdr")
    kept = rows[rows["snapshots"] != ""]
    table = sgdr.ensembles(rows, [5, 15, 35])
    assert table.shape == (3, 5)
    assert float(table[1][1]) == pytest.approx(kept["test_error"].mean(), abs=0.01)
    assert float(table[1][3]) < float(table[1][1])  # other images are wrong in each snapshot


def test_two_snapshots_are_averaged() -> None:
    sure, unsure = np.zeros((10_000, 10)), np.full((10_000, 10), 0.05)
    truth = np.repeat(np.arange(10), 1000)
    sure[np.arange(10_000), (truth + 1) % 10] = 1.0  # all wrong, and sure of it
    unsure[np.arange(10_000), truth] = 0.55
    kept = {1: {1: sure, 2: unsure}}
    assert 100 * (np.mean([kept[1][1], kept[1][2]], axis=0).argmax(1) != truth).mean() == 100
    rows = rows_of("sgdr")
    assert sgdr.labels(rows, {1: {35: sure}}) is None  # does not give the run's own error: not these classes


def test_unreadable_or_unlabelled_snapshots_give_no_ensemble() -> None:
    rows = rows_of("sgdr").copy()
    rows["probabilities"] = [["AAAA"] * len(kept) for kept in rows["probabilities"]]
    assert sgdr.snapshots(rows) == {} and sgdr.ensembles(rows, [5, 15, 35]).empty
    assert sgdr.last_epochs(rows, [5, 15, 35]).empty


# --- advice -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (-2.0, -0.1, "better"),
        (-0.5, 0.9, "no real cost"),
        (0.1, 0.9, "no real cost"),
        (0.1, 1.5, "worse, size open"),
        (1.1, 1.5, "worse"),
        (-0.1, 1.5, "inconclusive"),
        (math.nan, math.nan, "not tested"),
    ],
)
def test_a_cost_in_words(low: float, high: float, word: str) -> None:
    assert advice.cost(low, high, 1.0) == word


def test_every_planned_trick_is_in_one_comparison() -> None:
    parts = advice.parts_of(rows_of("tricks"), "cpu")
    assert all(len(part) == 3 for part in parts.values())
    table = advice.effects(rows_of("tricks"), "cpu", 0.03).set_index("label")
    assert table.loc["no decay at all", "value"] == pytest.approx(3.0)  # as made up: 3 pp without decay
    assert (advice.effects(rows_of("tricks", NONE), "cpu", 0.03)["verdict"] == "not tested").all()
    widths = advice.width_effects(rows_of("tricks"), "cpu")
    assert widths["label"].tolist() == ["width 8", "width 16"]
    assert advice.mapped(rows_of("tricks"))["n"] == 5
