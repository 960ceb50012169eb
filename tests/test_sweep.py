"""sweep: packs, what is skipped, started, tried again and reported, without a single worker process; then with them.

Most tests put a pool in the place of the processes that "trains" by writing made-up results, so that deaths of workers
come at exactly the moment that is to be tested.
"""

import dataclasses
import json
import os
import signal
import threading
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import made_up
import pytest

from decoupled import data, engine, store, sweep
from decoupled.plan import RunConfig
from decoupled.store import Store
from decoupled.sweep import Report, packs

TINY: dict = {
    "dataset": "generated", "network": "cnn", "width": 2, "train_size": 64, "augment": "none", "epochs": 1,
    "batch_size": 32,
}  # fmt: skip


def tiny(seed=0, **changes):
    fields: dict = {"algorithm": "sgdw", "alpha": 0.1, "decay": 1e-3, "seed": seed} | TINY | changes
    return RunConfig(**fields)


# --- packs --------------------------------------------------------------------------------------------------------


def test_packs_hold_runs_of_one_shape_in_the_order_of_the_plan():
    a, b, c = ([tiny(seed, **change) for seed in range(5)] for change in ({}, {"width": 4}, {"algorithm": "adam"}))
    runs = [a[0], b[0], a[1], c[0], a[2], b[1], a[3], a[4]]
    assert packs(runs, 2) == [[a[0], a[1]], [b[0], b[1]], [c[0]], [a[2], a[3]], [a[4]]]
    assert packs(runs, 1) == [[run] for run in runs]
    assert packs(runs, 100) == [[a[0], a[1], a[2], a[3], a[4]], [b[0], b[1]], [c[0]]]
    assert packs([], 3) == []


def test_runs_that_differ_only_in_what_a_pack_holds_per_run_go_together():
    run = tiny()
    others = {
        "alpha": 0.3,
        "decay": 0.0,
        "schedule": "fixed",
        "decay_unit": "normalized",
        "decayed": "weight",
        "seed": 8,
    }
    runs = [run, *(dataclasses.replace(run, **{name: value}) for name, value in others.items())]
    assert packs(runs, 99) == [runs]


def test_work_is_counted_in_images():
    assert sweep.work([tiny(epochs=3), tiny(train_size=10)]) == 3 * 64 + 10
    assert sweep.slots("cpu") >= 1


# --- a pool that trains nothing -----------------------------------------------------------------------------------


class Pool:
    """In the place of ProcessPoolExecutor: a result is made up after `takes` seconds, unless a worker dies before.

    `deadly`: keys of runs whose worker dies at once, and with it whatever is in flight. `closes`: after that many
    finished packs a worker dies between two packs, which the next submit notices.
    """

    takes, deadly, fails, closes, speed = 0.02, set[str](), set[str](), -1, 1e9
    submitted: list[list[RunConfig]]
    finished = 0

    def __init__(self, workers, context, start_worker):
        self.pending: list[Future] = []
        self.broken = False
        self.workers, self._processes = workers, None

    @classmethod
    def settle(cls, **settings):
        return type("Pool", (cls,), {"submitted": [], **settings})

    def submit(self, function, pack, folder, device, data_folder):
        if self.broken or type(self).finished == self.closes:
            type(self).closes = -1
            self.die()
            raise BrokenProcessPool("a worker died")
        assert function is sweep._work
        self.submitted.append(pack)
        future: Future = Future()
        self.pending.append(future)
        assert len([f for f in self.pending if not f.done()]) <= self.workers
        deadly = self.deadly & {run.key() for run in pack}
        if deadly:
            thread = threading.Timer(0, self.die)
        else:
            thread = threading.Timer(self.takes, self.train, (future, pack, folder))
        thread.daemon = True
        thread.start()
        return future

    def die(self):
        self.broken = True
        for future in self.pending:
            if not future.done():
                future.set_exception(BrokenProcessPool("a worker died"))

    def train(self, future, pack, folder):
        if self.broken:
            return
        if any(run.key() in self.fails for run in pack):
            future.set_exception(RuntimeError("out of memory\nTraceback of many lines"))
            return
        for run in pack:
            Store(folder).write(run, made_up.result(run), made_up.PROVENANCE)
        type(self).finished += 1
        future.set_result(sweep.work(pack) / self.speed)

    def shutdown(self, wait, cancel_futures):
        pass


@pytest.fixture
def carry_out(tmp_path, monkeypatch):
    """sweep.carry_out with a settled Pool; returns (report, what was said, the pool's class)."""

    def run(runs, workers=2, pack_size=1, time_limit=None, **settings):
        pool = Pool.settle(**settings)
        monkeypatch.setattr(sweep, "ProcessPoolExecutor", pool)
        said: list[str] = []
        options = {"device": "cpu", "data_folder": None, "workers": workers, "pack_size": pack_size}
        folder = Store(tmp_path / "results", said.append)
        report = sweep.carry_out(runs, folder, time_limit=time_limit, say=said.append, **options)
        assert not list(folder.folder.glob(".*.part"))
        return report, said, pool

    return run


def stored(tmp_path):
    return Store(tmp_path / "results").keys()


def keys(runs):
    return {run.key() for run in runs}


def test_every_missing_run_is_trained_once_in_order(carry_out, tmp_path):
    runs = [tiny(seed) for seed in range(7)]
    report, said, pool = carry_out(runs[:3])
    assert report == Report(found=0, trained=3)
    report, said, pool = carry_out([*runs, *runs])
    assert report == Report(found=3, trained=4) and not said
    assert pool.submitted == [[run] for run in runs[3:]]
    assert stored(tmp_path) == keys(runs)


def test_packs_are_trained_together(carry_out):
    runs = [tiny(seed) for seed in range(5)]
    report, _, pool = carry_out(runs, pack_size=2)
    assert report == Report(trained=5) and pool.submitted == [runs[0:2], runs[2:4], runs[4:5]]


def test_nothing_is_started_when_all_is_done_or_no_time_is_left(carry_out, tmp_path):
    runs = [tiny(seed) for seed in range(3)]
    report, _, pool = carry_out(runs, time_limit=0)
    assert report == Report(left=3) and pool.submitted == [] and stored(tmp_path) == set()
    assert carry_out(runs, time_limit=-5)[0] == Report(left=3)
    carry_out(runs)
    report, _, pool = carry_out(runs, time_limit=0)
    assert report == Report(found=3) and pool.submitted == []
    assert carry_out([])[0] == Report()


def test_no_pack_is_started_that_would_not_finish_in_time(carry_out):
    runs = [tiny(seed) for seed in range(6)]
    # 64 images took 100 seconds, so the pool says: nothing more fits into 60
    report, _, pool = carry_out(runs, workers=1, time_limit=60, speed=0.64)
    assert report == Report(trained=1, left=5) and pool.submitted == [[runs[0]]]
    report, _, pool = carry_out(runs, workers=1, time_limit=200, speed=0.64)
    assert report == Report(found=1, trained=5)


def test_rubbish_of_a_killed_writer_is_removed_and_results_stay(carry_out, tmp_path):
    run = tiny()
    carry_out([run])
    checkpoints = tmp_path / "results" / "checkpoints"
    checkpoints.mkdir()
    whole = checkpoints / "0123456789abcdef-1.pt"
    whole.write_text("a pack that goes on in the next sweep")
    rubbish = [tmp_path / "results" / f".{run.key()}.123.part", checkpoints / f"{whole.name}.123.part"]
    for path in rubbish:
        path.write_text("half a res")
    assert carry_out([run])[0] == Report(found=1)
    assert not any(path.exists() for path in rubbish)
    assert whole.exists() and stored(tmp_path) == {run.key()}


def test_a_run_that_fails_is_reported_once_in_one_line_and_the_rest_goes_on(carry_out, tmp_path):
    runs = [tiny(seed) for seed in range(6)]
    bad = keys([runs[0], runs[3]])
    report, said, _ = carry_out(runs, fails=bad)
    assert report.trained == 4 and report.failed == dict.fromkeys(bad, "out of memory")
    assert said == [f"run {runs[0].key()} failed: out of memory"]  # the same reason is said once
    assert stored(tmp_path) == keys(runs) - bad


def test_a_worker_that_dies_between_two_packs_loses_no_pack(carry_out, tmp_path):
    runs = [tiny(seed) for seed in range(6)]
    report, _, _ = carry_out(runs, workers=1, closes=2)
    assert stored(tmp_path) == keys(runs) and report == Report(trained=6)


def test_a_run_that_always_kills_its_worker_ends_and_fails_alone(carry_out, tmp_path):
    runs = [tiny(seed) for seed in range(6)]
    report, _, pool = carry_out(runs, workers=3, deadly={runs[1].key()})
    assert set(report.failed) == {runs[1].key()} and "died" in report.failed[runs[1].key()]
    assert stored(tmp_path) == keys(runs) - {runs[1].key()}
    assert report.trained == 5
    assert 2 <= sum(runs[1] in pack for pack in pool.submitted) <= 3  # tried again, not for ever


def test_a_finished_pack_of_a_broken_pool_counts_as_trained(carry_out, tmp_path, monkeypatch):
    runs = [tiny(0), tiny(1)]
    write = Store.write

    def write_and_break(self, run, result, provenance):
        path = write(self, run, result, provenance)
        if not broken:
            broken.append(run)
            raise BrokenProcessPool("the worker died after it had written")
        return path

    broken: list[RunConfig] = []

    class Dying(Pool):
        def train(self, future, pack, folder):
            try:
                super().train(future, pack, folder)
            except BrokenProcessPool:
                self.die()

    monkeypatch.setattr(Store, "write", write_and_break)
    monkeypatch.setattr(Pool, "settle", Dying.settle)
    report, _, pool = carry_out(runs, workers=1)
    assert report == Report(trained=2) and pool.submitted == [[runs[0]], [runs[1]]]


def interrupt_once(monkeypatch):
    """The first wait of the sweep is ended by Ctrl-C."""
    wait, calls = sweep.wait, []

    def wait_or_stop(*args, **options):
        calls.append(args)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return wait(*args, **options)

    monkeypatch.setattr(sweep, "wait", wait_or_stop)


def test_ctrl_c_lets_running_packs_finish_and_starts_no_other(carry_out, tmp_path, monkeypatch):
    runs = [tiny(seed) for seed in range(6)]
    interrupt_once(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        carry_out(runs, workers=2)
    assert stored(tmp_path) == keys(runs[:2])


def test_ctrl_c_stops_even_if_a_worker_dies_of_it(carry_out, tmp_path, monkeypatch):
    runs = [tiny(seed) for seed in range(6)]
    interrupt_once(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        carry_out(runs, workers=2, deadly={runs[1].key()})
    assert stored(tmp_path) <= keys(runs[:2])


def test_a_store_that_another_sweep_holds_is_left_alone(carry_out, tmp_path):
    folder = Store(tmp_path / "results")
    folder.open_for_writing()
    with folder.sole_writer(), pytest.raises(OSError, match=r"^another sweep is writing into "):
        carry_out([tiny()])
    assert stored(tmp_path) == set()


# --- real workers -------------------------------------------------------------------------------------------------

LINUX = Path("/proc/self/stat").exists()


def numbers(row):
    left_out = {"seconds", *store.PROVENANCE}
    return json.dumps({name: value for name, value in row.items() if name not in left_out}, sort_keys=True)


def test_workers_store_what_the_engine_gives_and_a_bad_run_does_not_stop_them(tmp_path):
    good = [tiny(0), tiny(1, alpha=0.05), tiny(2)]
    bad = tiny(3, dataset="cifar10")
    said: list[str] = []
    folder = Store(tmp_path / "mit Leerzeichen, λ", said.append)
    missing = tmp_path / "no images here"
    runs = [good[0], bad, *good[1:]]
    report = sweep.carry_out(runs, folder, device="cpu", data_folder=missing, workers=2, say=said.append)
    assert report.trained == 3 and report.found == report.left == 0
    assert report.failed == {bad.key(): said[0].partition(" failed: ")[2]}
    assert len(said) == 1 and said[0].startswith(f"run {bad.key()} failed: data_batch_1.bin is missing in {missing}")
    images = data.generated()
    for run in good:
        row = folder.read(run.key())
        [result] = engine.train([run], images)
        assert numbers(row) == numbers({"key": run.key(), **run.to_dict(), **result})
        assert row["fingerprint"] == images.fingerprint and row["device"] == engine.device_name("cpu")
        assert row["seconds"] > 0
    again = sweep.carry_out(good, folder, device="cpu", data_folder=None)
    assert again == Report(found=3)
    assert {path.name for path in folder.folder.iterdir()} == {".lock"} | {f"{run.key()}.json" for run in good}


def workers_of_this_process():
    """Process ids of the workers started by this process."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and b"spawn_main" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:  # it has ended meanwhile
            continue
    return found


@pytest.mark.faults
@pytest.mark.skipif(not LINUX, reason="finds worker processes in /proc")
def test_a_worker_killed_in_mid_run_is_replaced_and_the_sweep_finishes(tmp_path):
    runs = [tiny(seed, train_size=512, epochs=3) for seed in range(5)]
    folder = Store(tmp_path / "results")
    folder.open_for_writing()
    killed, before = [], {}

    def kill_a_worker():
        while not folder.keys():
            time.sleep(0.01)
        time.sleep(0.1)  # the next run has begun
        before.update({path: path.read_bytes() for path in folder.folder.glob("*.json")})
        killed.append(workers_of_this_process()[0])
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_a_worker, daemon=True)
    killer.start()
    report = sweep.carry_out(runs, folder, device="cpu", data_folder=None, workers=1, say=pytest.fail)
    killer.join(10)
    assert len(killed) == 1 and before
    assert report == Report(trained=5)
    assert set(folder.frame()["key"]) == keys(runs)
    assert all(path.read_bytes() == content for path, content in before.items())  # not trained again
