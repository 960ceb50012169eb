"""engine: the same bits again, after an interruption too; damaged checkpoints; diverging runs."""

import dataclasses
import math
import multiprocessing

import pytest
import torch
from plain_loop import N, assert_close, different, make_images, numbers, plain_training, tiny

from decoupled import engine
from decoupled.pack import Pack


@pytest.fixture(scope="module")
def images():
    return make_images()


# --- the same bits ------------------------------------------------------------------------------------------------

REPEATED = {
    "float32": different(precision="float32")[:2],
    "bfloat16": [tiny("adam", 0.01, network="shakeshake26", epochs=2, precision="bfloat16")],
}


def train_elsewhere(names, checkpoint=None):
    """In a fresh process: the results of the named packs, as text."""
    torch.set_num_threads(1)
    return [numbers(engine.train(REPEATED[name], make_images(), checkpoint=checkpoint)) for name in names]


def in_fresh_process(*args):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        result = pool.apply(train_elsewhere, args)
        pool.close()
        pool.join()
    return result


def test_the_same_runs_give_the_same_bits_here_and_in_a_fresh_process(images):
    here = [numbers(engine.train(runs, images)) for runs in REPEATED.values()]
    assert [numbers(engine.train(runs, images)) for runs in REPEATED.values()] == here
    assert in_fresh_process(list(REPEATED)) == here


@pytest.mark.parametrize(
    "changes",
    [{}, {"precision": "bfloat16"}, {"network": "shakeshake26", "batch_size": 16}],
    ids=["float32", "bfloat16", "shakeshake26"],
)
def test_on_a_cpu_the_bits_of_a_run_do_not_depend_on_its_pack(changes, images):
    """Width 8 and more: a neighbour moves nothing within the vectors in which channels are added up."""
    runs = different(**{"precision": "float32", "width": 8, "epochs": 2} | changes)
    [alone] = numbers(engine.train(runs[:1], images))
    for pack, place in ((runs[:2], 0), (runs[::-1], len(runs) - 1), (runs[:1] * 2, 1), ([*runs[1:2] * 4, runs[0]], 4)):
        assert numbers(engine.train(pack, images))[place] == alone


# --- checkpoints --------------------------------------------------------------------------------------------------


class PowerCut(Exception):
    pass


def interrupt(monkeypatch, runs, images, checkpoint, saves, at_step=None):
    """Train until the given number of checkpoints is written, or until a step after that, then stop dead."""
    save, begin, step, written, now = engine.Book.save, Pack.begin, Pack._step, list[int](), [0]
    engine.release()

    def save_and_stop(self, path, pack):
        save(self, path, pack)
        written.append(self.epoch)
        if len(written) == saves and at_step is None:
            raise PowerCut

    def begin_and_count(self, epoch, drawn):
        now[0] = epoch * self.first.steps_per_epoch
        begin(self, epoch, drawn)

    def step_or_stop(self, size):
        if now[0] == at_step:
            raise PowerCut
        step(self, size)
        now[0] += 1

    with monkeypatch.context() as patch:
        patch.setattr(engine.Book, "save", save_and_stop)
        patch.setattr(Pack, "begin", begin_and_count)
        patch.setattr(Pack, "_step", step_or_stop)
        with pytest.raises(PowerCut):
            engine.train(runs, images, checkpoint=checkpoint, checkpoint_s=0)
    engine.release()  # its step is the patched one
    assert len(written) == saves


RESUMED = {
    "sgdw, masks and restarts": different(epochs=5, evaluations=3, precision="float32"),
    "adamw, shake-shake": [tiny("adamw", 0.01, seed=s, network="shakeshake26", precision="float32") for s in (1, 2)],
    "float16": [tiny("adamw", 0.01, network="shakeshake26", precision="float16")],
    "one diverged": [tiny("adam", 0.01, precision="float32"), tiny("adam", 1e30, precision="float32")],
}


@pytest.mark.faults
@pytest.mark.parametrize("runs", RESUMED.values(), ids=RESUMED)
@pytest.mark.parametrize("where", ["at the end of an epoch", "within an epoch"])
def test_a_resumed_pack_ends_with_the_bits_of_an_uninterrupted_one(runs, where, images, monkeypatch, tmp_path):
    few = images._replace(test_x=images.test_x[:50], test_y=images.test_y[:50])
    whole = numbers(engine.train(runs, few))
    file = tmp_path / "checkpoints" / "pack.pt"
    if where == "within an epoch":
        interrupt(monkeypatch, runs, few, file, saves=1, at_step=runs[0].steps_per_epoch + 1)
    else:
        interrupt(monkeypatch, runs, few, file, saves=2)
    begun: list[int] = []
    begin = Pack.begin

    def noted_begin(self, epoch, drawn):
        begun.append(epoch)
        begin(self, epoch, drawn)

    monkeypatch.setattr(Pack, "begin", noted_begin)
    resumed = engine.train(runs, few, checkpoint=file)
    assert (
        begun == list(range(1 if where == "within an epoch" else 2, runs[0].epochs)) or resumed[-1]["diverged_step"] > 0
    )
    assert numbers(resumed) == whole
    assert list(file.parent.iterdir()) == [file]  # nothing half-written is left behind


def test_a_checkpoint_resumes_in_another_process(images, monkeypatch, tmp_path):
    runs = REPEATED["float32"]
    interrupt(monkeypatch, runs, images, tmp_path / "pack.pt", saves=1)
    assert in_fresh_process(["float32"], tmp_path / "pack.pt") == [numbers(engine.train(runs, images))]


def test_checkpoints_are_written_no_more_often_than_asked(images, tmp_path):
    engine.train([tiny()], images, checkpoint=tmp_path / "pack.pt", checkpoint_s=3600)
    assert not list(tmp_path.iterdir())
    engine.train([tiny(epochs=1)], images, checkpoint=tmp_path / "pack.pt", checkpoint_s=0)
    assert not list(tmp_path.iterdir())  # nothing is left to resume


def bad_checkpoints(folder, runs, images, monkeypatch):
    """(name, bytes) of files that are no checkpoint of `runs`, or a damaged one."""
    file = folder / "made.pt"
    interrupt(monkeypatch, runs, images, file, saves=1)
    good = file.read_bytes()
    yield "empty", b""
    yield "text", b"not a checkpoint\n" * 50
    yield "zeros", bytes(5000)
    for part in (0.1, 0.5, 0.99):
        yield f"first {100 * part:.0f} %", good[: int(part * len(good))]
    for position in range(len(good) // 40, len(good), len(good) // 20):
        flipped = bytearray(good)
        flipped[position] ^= 64
        yield f"a flipped bit in byte {position} of {len(good)}", bytes(flipped)
    foreign = {"a list": [1, 2], "a number": 3, "a tensor": torch.zeros(3), "a book": {"book": 5}}
    for name, content in foreign.items():
        torch.save(content, file)
        yield name, file.read_bytes()
    with monkeypatch.context() as patch:  # as another version of the engine might have written it
        patch.setattr(engine.Book, "FIELDS", tuple(name for name in engine.Book.FIELDS if name != "loss"))
        interrupt(monkeypatch, runs, images, file, saves=1)
    yield "without losses", file.read_bytes()
    interrupt(monkeypatch, runs[:1], images, file, saves=1)
    yield "one run of the pack", file.read_bytes()
    interrupt(monkeypatch, runs[::-1], images, file, saves=1)
    yield "the runs in another order", file.read_bytes()
    interrupt(monkeypatch, [dataclasses.replace(run, alpha=0.2) for run in runs], images, file, saves=1)
    yield "other runs", file.read_bytes()


@pytest.mark.faults
def test_a_damaged_or_foreign_checkpoint_is_passed_over(images, monkeypatch, tmp_path):
    few = images._replace(test_x=images.test_x[:50], test_y=images.test_y[:50])
    runs = different(precision="float32", epochs=2)[:2]
    fresh = numbers(engine.train(runs, few))
    wrong = []
    for name, content in bad_checkpoints(tmp_path, runs, few, monkeypatch):
        file = tmp_path / "pack.pt"
        file.write_bytes(content)
        try:
            if numbers(engine.train(runs, few, checkpoint=file)) != fresh:
                wrong.append(f"{name}: other numbers")
        except Exception as error:
            wrong.append(f"{name}: {type(error).__name__} {str(error).splitlines()[0]}")
    assert not wrong, "\n".join(wrong)


def test_a_long_run_is_trained_in_pieces_of_limited_time(images, tmp_path):
    runs, file = different(precision="float32", epochs=4)[:2], tmp_path / "pack.pt"
    whole = numbers(engine.train(runs, images))
    for epochs in (1, 2, 3):
        with pytest.raises(engine.OutOfTime, match=f"^stopped after {epochs} of 4 epochs: the time is over$"):
            engine.train(runs, images, checkpoint=file, checkpoint_s=3600, time_limit=0)
    assert numbers(engine.train(runs, images, checkpoint=file, time_limit=0)) == whole  # its last epoch ends it


# --- divergence ---------------------------------------------------------------------------------------------------


@pytest.mark.faults
def test_divergence_is_recorded_with_the_step_at_which_the_loss_ceased_to_be_finite(images):
    # decay of 1e10 per step multiplies the weights by -1e10 each time: the loss overflows after several steps
    run = tiny("sgdw", 0.1, 1e10, schedule="fixed", epochs=6, evaluations=6)
    _, losses = plain_training(run, images, ours=True)
    flat = [loss for epoch in losses for loss in epoch]
    near = next(s for s, loss in enumerate(flat) if not math.isfinite(loss))
    [result] = engine.train([run], images)
    first, per_epoch = result["diverged_step"], run.steps_per_epoch
    assert per_epoch < first < run.steps - per_epoch  # neither in the first nor in the last epoch
    assert abs(first - near) <= 1  # other kernels may take a step more or less to overflow
    assert engine._ready is not None
    finite = engine._ready.pack.losses.isfinite()[:, 0].tolist()  # of the last epoch that was trained
    assert finite.index(False) == first % per_epoch
    assert math.isnan(result["test_error"]) and math.isnan(result["val_error"]) and math.isnan(result["train_loss"])
    assert all(map(math.isnan, result["test_curve"] + result["val_curve"]))
    # nothing is left to train: it stops at the end of that epoch
    assert len(result["loss_curve"]) == first // run.steps_per_epoch + 1 == len(result["eval_epochs"])


@pytest.mark.faults
def test_a_diverging_run_leaves_its_neighbours_alone(images):
    good = [tiny(alpha=0.1, seed=1), tiny(alpha=0.03, seed=2)]
    bad = [tiny(alpha=1e250, seed=1), tiny(alpha=1e250, seed=3)]
    results = engine.train([bad[0], good[0], bad[1], good[1]], images)
    assert [result["diverged_step"] for result in results] == [1, -1, 1, -1]
    for run, result in zip(good, results[1::2], strict=True):
        assert_close(result, engine.train([run], images)[0])
        assert math.isfinite(result["test_error"]) and len(result["loss_curve"]) == run.epochs
    for result in results[::2]:
        assert math.isnan(result["test_error"]) and math.isnan(result["train_loss"])


@pytest.mark.faults
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("alpha", [1e308, 1e38], ids=["infinite weights", "finite weights, no finite prediction"])
def test_what_the_very_last_update_breaks_counts_as_diverged(images, alpha, precision):
    run = tiny(alpha=alpha, epochs=1, batch_size=N, precision=precision)
    assert run.steps == 1
    [result] = engine.train([run], images)
    assert math.isfinite(result["loss_curve"][0])  # no loss ever showed it
    assert result["diverged_step"] == 1 and math.isnan(result["test_error"]) and math.isnan(result["train_loss"])
