"""Numbers that go wrong, and settings at the edge of sense: what is recorded, shown, averaged; and what repeats.

The three promises of reproducibility: the same bits (one kind of machine, one version), the same numbers up to
round-off (packs of other sizes), the same distribution (other seeds). The first two are held here.
"""

import dataclasses
import math

import made_up
import numpy as np
import pandas as pd
import pytest
import torch
from made_up_plans import diverge, study
from plain_loop import N, make_images, multiplier_of, numbers, plain_error, plain_training, tiny

from decoupled import data, engine, evidence, inference, plan, report, store
from decoupled.pack import Pack, random_stream

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def images():
    made = make_images()
    return made._replace(test_x=made.test_x[:60], test_y=made.test_y[:60])


# --- settings at the edge ---------------------------------------------------------------------------------------------


def weights_before_and_after(run, images, monkeypatch):
    """theta before the first update of a run and after its last; its result."""
    seen: list[torch.Tensor] = []
    fill = Pack._fill

    def noted(self, runs):
        fill(self, runs)
        seen[:] = [self.theta.clone()]

    with monkeypatch.context() as patch:
        patch.setattr(Pack, "_fill", noted)
        [result] = engine.train([run], images)
    assert engine._ready is not None
    return seen[0], engine._ready.pack.theta.clone(), result


@pytest.mark.parametrize("algorithm", ["sgd", "sgdw", "adam", "adamw"])
def test_without_learning_rate_and_decay_nothing_moves(algorithm, images, monkeypatch):
    before, after, result = weights_before_and_after(tiny(algorithm, 0.0, 0.0), images, monkeypatch)
    assert torch.equal(before, after)
    assert result["diverged_step"] == -1 and result["decay_first_step"] == 0.0 and math.isfinite(result["test_error"])


@pytest.mark.parametrize("algorithm", ["sgdw", "adamw"])
def test_without_learning_rate_decoupled_decay_still_shrinks_by_its_schedule(algorithm, images, monkeypatch):
    run = tiny(algorithm, 0.0, 0.1, schedule="cosine")
    before, after, result = weights_before_and_after(run, images, monkeypatch)
    eta = multiplier_of(run)
    factor = math.prod(1 - 0.1 * eta(s) for s in range(run.steps))
    torch.testing.assert_close(after, factor * before, rtol=1e-12, atol=1e-15)
    assert result["decay_first_step"] == pytest.approx(0.1) and math.isfinite(result["test_error"])


@pytest.mark.parametrize("decay", [1.0, 1.5, 2.0, 3.0], ids=["all of it", "turned round", "kept up", "blown up"])
def test_decay_of_one_over_eta_and_more_does_what_the_formula_says(decay, images, monkeypatch):
    # (1 - decay) per step while eta = 1: 0, -1/2, -1, -2
    run = tiny("sgdw", 0.0, decay, schedule="fixed", epochs=2)
    before, after, result = weights_before_and_after(run, images, monkeypatch)
    torch.testing.assert_close(after, (1 - decay) ** run.steps * before, rtol=1e-9, atol=1e-15)
    assert result["diverged_step"] == -1 and result["decay_first_step"] == pytest.approx(decay)
    assert 0 <= result["test_error"] <= 100


def test_a_batch_larger_than_the_data_set_is_one_update_per_epoch(images):
    large, exact = tiny(batch_size=10 * N, epochs=2), tiny(batch_size=N, epochs=2)
    assert large.steps == exact.steps == 2
    results = [engine.train([run], images)[0] for run in (large, exact)]
    assert numbers(results[:1]) == numbers(results[1:])
    _, losses = plain_training(large, images, ours=True)
    assert results[0]["loss_curve"] == pytest.approx([epoch[0] for epoch in losses], rel=1e-8)


def test_one_epoch_is_a_whole_run(images):
    run = tiny("adamw", 0.01, epochs=1)
    [result] = engine.train([run], images)
    model, losses = plain_training(run, images, ours=True)
    assert result["eval_epochs"] == [1] and len(result["loss_curve"]) == 1
    assert result["loss_curve"][0] == pytest.approx(sum(losses[0]) / 3, rel=1e-8)
    assert result["test_error"] == pytest.approx(plain_error(model, images.test_x, images.test_y))


def test_a_class_that_is_missing_in_a_subset_is_learned_by_no_one_and_harms_no_one(images):
    part, _ = data.split(N)
    labels = images.train_y.clone()
    labels[part[labels[part] == labels[part[0]]]] = (labels[part[0]] + 1) % 10
    without = images._replace(train_y=labels)
    assert len(set(labels[part].tolist())) < len(set(images.train_y[part].tolist()))
    run = tiny("adamw", 0.01)
    [result] = engine.train([run], without)
    model, losses = plain_training(run, without, ours=True)
    assert result["loss_curve"][-1] == pytest.approx(sum(losses[-1]) / 3, rel=1e-8)
    assert result["test_error"] == pytest.approx(plain_error(model, without.test_x, without.test_y))


# --- divergence -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("step", [0, 4, 8])
def test_a_loss_that_is_no_number_is_recorded_with_its_step(bad, step, images, monkeypatch):
    run, losses = tiny(), Pack._run_losses

    def break_one(self, order, draws, shake):
        out = losses(self, order, draws, shake)
        return out * torch.where(self.s == step, bad, 1.0)

    monkeypatch.setattr(Pack, "_run_losses", break_one)
    engine.release()
    [result] = engine.train([run], images)
    engine.release()
    assert result["diverged_step"] == step
    assert all(math.isnan(result[name]) for name in ("test_error", "val_error", "train_loss"))


def test_a_diverged_run_is_stored_published_and_shown_as_such_and_averaged_into_nothing(tmp_path):
    frame = study("smoke", "grids")
    rows = plan.rows(frame, "smoke", "grids")
    cell = evidence.select(rows, "adamw", "cosine")
    assert cell is not None
    mine = (frame["alpha"] == cell.alpha) & (frame["decay"] == cell.decay) & (frame["algorithm"] == "adamw")
    fresh = frame.index[mine & (frame["seed"] > 0)]
    broken = diverge(frame, int(fresh[0]))
    store.merge_into(store.Store(tmp_path / "store"), broken)
    path, _ = store.export(store.Store(tmp_path / "store").frame(), tmp_path / "smoke.parquet")
    again = store.load(path)
    row = again[again["key"] == frame["key"][fresh[0]]].iloc[0]
    assert row["diverged_step"] == 3 and math.isnan(row["test_error"]) and math.isnan(row["train_loss"])
    errors = evidence.fresh(plan.rows(again, "smoke", "grids"), cell)
    assert len(errors) and errors.isna().sum() == 1
    assert all(math.isnan(number) for number in report.mean_interval(errors))
    grid = evidence.pivot(plan.rows(again, "smoke", "grids"), "adamw", "cosine").error
    assert math.isnan(grid.loc[[cell.alpha], [cell.decay]].to_numpy().item())
    assert report.values(again, "smoke", report.load_paper())["adamw"]["cosine"]["error"] is None
    table = report.provenance({"smoke": again})
    assert [line.split(" | ")[3] for line in table.splitlines() if line.startswith("| `grids`")] == ["1"]


def test_no_mean_or_interval_is_made_of_the_seeds_that_happened_to_survive():
    errors = pd.Series([7.0, math.nan, 9.0], index=[1, 2, 3])
    good = pd.Series([7.0, 8.0, 9.0], index=[1, 2, 3])
    assert all(math.isnan(number) for number in report.mean_interval(errors))
    assert math.isnan(inference.paired(errors, good).value) and math.isnan(inference.paired(good, errors).high)
    assert all(math.isnan(number) for number in inference.paired_ratio(errors, good))
    assert math.isnan(report.mean_interval(errors.iloc[1:2])[0])


def test_a_diverged_run_is_compared_as_one():
    published = study("smoke", "fixed_lr")
    broken = diverge(published, 0)
    same = report.compare(broken, broken.copy(), "smoke").set_index("experiment").loc["fixed_lr"]
    assert same["same bits"] == same["in both"] == len(published)
    other = report.compare(broken, published, "smoke").set_index("experiment").loc["fixed_lr"]
    assert other["same bits"] == len(published) - 1 and other["largest, pp"] == math.inf


# --- what repeats -----------------------------------------------------------------------------------------------------


def test_packs_of_every_size_give_the_same_numbers_up_to_round_off(images):
    runs = [tiny("adamw", 0.01 * (1 + i % 3), decay=0.01 * i, seed=i) for i in range(6)]
    whole = engine.train(runs, images)
    for size in (1, 2, 3, 4):
        parts = [result for at in range(0, 6, size) for result in engine.train(runs[at : at + size], images)]
        for one, other in zip(parts, whole, strict=True):
            assert one["loss_curve"] == pytest.approx(other["loss_curve"], rel=1e-9)
            assert one["test_error"] == other["test_error"] and one["val_error"] == other["val_error"]


def test_a_pack_that_does_not_fit_gives_the_numbers_of_its_halves(images, monkeypatch):
    """What the sweep does after an OutOfMemoryError, in this process: release, and train the halves."""
    runs, step = [tiny(seed=i) for i in range(4)], Pack._step

    def scarce(self, size):
        if len(self.runs) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        step(self, size)

    alone = [engine.train([run], images)[0] for run in runs]
    monkeypatch.setattr(Pack, "_step", scarce)
    engine.release()
    with pytest.raises(torch.OutOfMemoryError):
        engine.train(runs, images)
    engine.release()
    halves = engine.train(runs[:2], images) + engine.train(runs[2:], images)
    engine.release()
    for one, other in zip(halves, alone, strict=True):
        assert one["loss_curve"] == pytest.approx(other["loss_curve"], rel=1e-9)


@pytest.mark.parametrize("precision", ["float32", "float64", "bfloat16", "float16"])
def test_one_seed_gives_the_same_bits_twice_and_another_gives_others(precision, images):
    run = tiny("adamw", 0.01, precision=precision)
    first, other = (numbers(engine.train([r], images)) for r in (run, dataclasses.replace(run, seed=1)))
    engine.release()  # nothing of the first is left
    torch.manual_seed(99)
    np.random.seed(99)
    assert numbers(engine.train([run], images)) == first != other


def test_equal_seeds_pair_runs_of_different_algorithms(images):
    """Initialisation and the order of images are those of the seed alone: a difference is that of the algorithms."""
    pairs = [tiny(algorithm, 0.01, seed=4) for algorithm in ("sgd", "sgdw", "adam", "adamw")]
    for purpose in ("init", "order", "augment", "shake"):
        draws = {tuple(torch.rand(5, generator=random_stream(run, purpose, 2)).tolist()) for run in pairs}
        assert len(draws) == 1
    assert len({engine.train([run], images)[0]["loss_curve"][0] for run in pairs}) > 1


def test_what_made_a_result_is_kept_beside_it(tmp_path):
    """The first promise holds for equal processor, torch and images; a reader must be able to see whether they are."""
    run = plan.grid_runs("grids", "smoke", "cifar10")[0]
    row = made_up.fill(tmp_path, [run]).read(run.key())
    assert {name: row[name] for name in store.PROVENANCE} == made_up.PROVENANCE
    assert {"device", "torch", "commit", "fingerprint"} <= set(store.PROVENANCE)
