"""sweep: packs, what is skipped, started, tried again, halved and reported, without a single worker process.

A crew stands in the place of the workers and "trains" by writing made-up results, so that deaths, full memories and
ends of time come at exactly the moment that is to be tested. Real processes are in test_workers.py.
"""

import dataclasses
import json
import threading
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

import made_up
import pytest

from decoupled import outlook, plan, sweep, workers
from decoupled.runs import RunConfig
from decoupled.store import Store
from decoupled.sweep import Report, Sweep, packs
from decoupled.workers import Measured, Outcome, checkpoint_of

TINY: dict = {
    "dataset": "generated", "network": "cnn", "width": 8, "train_size": 64, "augment": "none", "epochs": 1,
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


def test_packs_are_smaller_where_workers_would_have_nothing_to_do():
    runs = [tiny(seed) for seed in range(9)]
    sizes = {count: [len(pack) for pack in packs(runs[:count], 4, workers=2)] for count in (1, 2, 3, 4, 5, 7, 9)}
    assert sizes == {1: [1], 2: [2], 3: [2, 1], 4: [2, 2], 5: [3, 2], 7: [4, 3], 9: [3, 3, 3]}
    assert [len(pack) for pack in packs(runs, 1, workers=4)] == [1] * 9
    other = [tiny(seed, width=4) for seed in range(2)]  # a worker is busy with those
    assert packs([*runs[:4], *other], 4, workers=3) == [runs[:2], runs[2:4], other]


def test_packs_with_a_checkpoint_are_formed_again_and_come_first():
    runs = [tiny(seed) for seed in range(6)]
    begun = [[runs[i].key() for i in keys] for keys in ((3, 1), (2, 3), (5, 4))]  # 3 stands in two of them
    assert packs(runs, 4, begun=begun) == [[runs[3], runs[1]], [runs[5], runs[4]], [runs[0], runs[2]]]
    assert packs(runs[:4], 4, begun=begun[2:]) == [runs[:4]]


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
    looked_at = (5_000 + 10_000) // 3  # validation and test images, forward only
    assert sweep.work([tiny(epochs=3), tiny(train_size=10)]) == 3 * 64 + looked_at + 10 + looked_at
    assert sweep.work([tiny(epochs=3, evaluations=3)]) == 3 * (64 + looked_at)
    assert sweep.work([tiny(train_size=50_000, snapshots="1")]) == 50_000 + 20_000 // 3  # no validation, but a snapshot


# --- a crew that trains nothing -----------------------------------------------------------------------------------


class Crew:
    """In the place of the workers: a result is made up after `takes` seconds.

    deadly: how often the worker of a run dies, by key; `further` says that it wrote a checkpoint each time. fails:
    keys of runs that raise. memory: runs that fit into one pack. speed: images per second, measured and seen.
    """

    died = (BrokenProcessPool,)
    device = "A GPU with 80 GB"

    def __init__(self, count=2, takes=0.02, deadly=(), further=False, fails=(), memory=99, speed=1e9, seen=None):
        self.count, self.takes, self.deadly, self.further = count, takes, dict(deadly), further
        self.fails, self.memory, self.speed, self.seen = set(fails), memory, speed, seen or speed
        self.submitted: list[list[RunConfig]] = []
        self.stops: list[float | None] = []
        self.measured: list[RunConfig] = []
        self.flying = 0
        self.stopped = False

    def submit(self, function, /, *args):
        future: Future = Future()
        if function is workers.measure:
            self.measured.append(args[0])
            future.set_result(Measured(1 / self.speed, self.device))
            return future
        assert function is workers.train
        self.submitted.append(args[0])
        self.stops.append(args[-1])
        self.flying += 1
        assert self.flying <= self.count
        threading.Timer(self.takes, self.train, (future, *args)).start()
        return future

    def train(self, future, pack, folder, device, data_folder, checkpoint_s, hang_s, stop):
        self.flying -= 1
        mine = {run.key() for run in pack}
        checkpoint = checkpoint_of(folder, [run.key() for run in pack])
        if any(self.deadly.get(key, 0) > 0 for key in mine):
            self.deadly = {key: times - (key in mine) for key, times in self.deadly.items()}
            if self.further:
                checkpoint.parent.mkdir(exist_ok=True)
                checkpoint.write_text(str(time.time_ns()))
            future.set_exception(BrokenProcessPool("a worker died"))
        elif mine & self.fails:
            future.set_exception(RuntimeError("no such images\nTraceback of many lines"))
        elif len(pack) > self.memory:
            future.set_result(Outcome(0.0, self.device, "memory"))
        elif stop is not None and time.time() + sweep.work(pack) / self.seen * (1 - 1 / pack[0].epochs) > stop:
            future.set_result(Outcome(0.0, self.device, "time"))
        else:
            for run in pack:
                Store(folder).write(run, made_up.result(run), made_up.PROVENANCE)
            future.set_result(Outcome(sweep.work(pack) / self.seen, self.device))

    def shutdown(self, now=False):
        self.stopped = now


@pytest.fixture
def carry_out(tmp_path):
    """Sweep.carry_out with a Crew of these settings; returns (report, what was said, the crew)."""

    def run(runs, pack_size=1, time_limit=None, **settings):
        said: list[str] = []
        crew, folder = Crew(**settings), Store(tmp_path / "results", said.append)
        sweeper = Sweep(
            folder, crew, device=None, data_folder=None, pack_size=pack_size, time_limit=time_limit, say=said.append
        )
        report = sweeper.carry_out(runs)
        assert not list(folder.folder.glob(".*.part"))
        return report, said, crew

    return run


def stored(tmp_path):
    return Store(tmp_path / "results").keys()


def keys(runs):
    return {run.key() for run in runs}


def test_every_missing_run_is_trained_once_in_order(carry_out, tmp_path):
    runs = [tiny(seed) for seed in range(7)]
    report, said, crew = carry_out(runs[:3])
    assert report == Report(found=0, trained=3)
    report, said, crew = carry_out([*runs, *runs])
    assert report == Report(found=3, trained=4) and not said
    assert crew.submitted == [[run] for run in runs[3:]]
    assert stored(tmp_path) == keys(runs)


def test_packs_are_trained_together(carry_out):
    runs = [tiny(seed) for seed in range(5)]
    report, _, crew = carry_out(runs, pack_size=2)
    assert report == Report(trained=5) and crew.submitted == [runs[0:2], runs[2:4], runs[4:5]]


def test_nothing_is_measured_or_started_when_all_is_done(carry_out):
    runs = [tiny(seed) for seed in range(3)]
    carry_out(runs)
    report, _, crew = carry_out(runs, time_limit=0)
    assert report == Report(found=3) and crew.submitted == crew.measured == []
    assert carry_out([])[0] == Report()


@pytest.mark.faults
def test_a_run_that_fails_is_reported_once_in_one_line_and_the_rest_goes_on(carry_out, tmp_path):
    runs = [tiny(seed) for seed in range(6)]
    bad = keys([runs[0], runs[3]])
    report, said, _ = carry_out(runs, fails=bad)
    assert report.trained == 4 and report.failed == dict.fromkeys(bad, "no such images")
    assert said == [f"run {runs[0].key()} failed: no such images"]  # the same reason is said once
    assert stored(tmp_path) == keys(runs) - bad


@pytest.mark.faults
def test_a_store_that_another_sweep_holds_is_left_alone(carry_out, tmp_path):
    folder = Store(tmp_path / "results")
    folder.open_for_writing()
    with folder.sole_writer(), pytest.raises(OSError, match=r"^another sweep is writing into "):
        carry_out([tiny()])
    assert stored(tmp_path) == set()


# --- workers that die ---------------------------------------------------------------------------------------------


@pytest.mark.faults
def test_a_run_whose_worker_died_is_tried_again(carry_out, tmp_path):
    runs = [tiny(seed) for seed in range(6)]
    report, said, crew = carry_out(runs, deadly={runs[1].key(): 2})
    assert report == Report(trained=6) and not said
    assert stored(tmp_path) == keys(runs) and sum(runs[1] in pack for pack in crew.submitted) == 3


@pytest.mark.faults
def test_a_run_that_always_kills_its_worker_fails_alone(carry_out, tmp_path):
    runs = [tiny(seed) for seed in range(6)]
    report, _, crew = carry_out(runs, count=3, deadly={runs[1].key(): 99})
    assert report == Report(trained=5, failed={runs[1].key(): "its worker died 3 times"})
    assert stored(tmp_path) == keys(runs) - {runs[1].key()}
    assert sum(runs[1] in pack for pack in crew.submitted) == 3  # not for ever


@pytest.mark.faults
def test_a_death_after_a_new_checkpoint_does_not_count(carry_out, tmp_path):
    run = tiny()
    report, _, crew = carry_out([run], deadly={run.key(): 9}, further=True)
    assert report == Report(trained=1) and len(crew.submitted) == 10


@pytest.mark.faults
def test_what_a_dead_worker_had_stored_counts_as_trained(carry_out, tmp_path, monkeypatch):
    runs = [tiny(0), tiny(1), tiny(2)]

    def die_after_the_first(self, future, pack, folder, *_rest):
        if len(pack) == 3:
            self.flying -= 1
            Store(folder).write(pack[0], made_up.result(pack[0]), made_up.PROVENANCE)
            future.set_exception(BrokenProcessPool("a worker died"))
        else:
            train(self, future, pack, folder, *_rest)

    train = Crew.train
    monkeypatch.setattr(Crew, "train", die_after_the_first)
    report, _, crew = carry_out(runs, pack_size=3, count=1)
    assert report == Report(trained=3) and crew.submitted == [runs, runs[1:]]


# --- memory -------------------------------------------------------------------------------------------------------


@pytest.mark.faults
def test_a_pack_that_does_not_fit_is_halved_and_the_limit_is_remembered(carry_out, tmp_path):
    runs = [tiny(seed) for seed in range(16)]
    report, said, crew = carry_out(runs, pack_size=8, memory=3, count=1)
    assert report == Report(trained=16) and stored(tmp_path) == keys(runs)
    assert [len(pack) for pack in crew.submitted] == [8, 4, 2, 2, 2, 2, 2, 2, 2, 2]
    assert said == [
        "8 runs in one pack do not fit into the memory of A GPU with 80 GB: trying 4",
        "4 runs in one pack do not fit into the memory of A GPU with 80 GB: trying 2",
    ]
    remembered = json.loads((tmp_path / "results/memory.json").read_text())
    assert remembered == {"A GPU with 80 GB/cnn/8/32/float32": 2}
    more = [tiny(seed) for seed in range(20, 25)]
    _, said, crew = carry_out([*more, *(tiny(seed, width=4) for seed in range(4))], pack_size=8, memory=4, count=1)
    assert [len(pack) for pack in crew.submitted] == [2, 2, 1, 4] and not said  # another size has its own limit


@pytest.mark.faults
def test_a_run_that_does_not_fit_alone_fails_with_what_to_do_and_the_rest_goes_on(carry_out, tmp_path):
    runs = [tiny(seed) for seed in range(2)]
    report, said, _ = carry_out(runs, pack_size=2, memory=0)
    assert report.trained == 0 and set(report.failed) == keys(runs)
    what = "a single run does not fit into the memory of A GPU with 80 GB; free memory there or use a bigger device"
    assert said[-1].endswith(f" failed: {what}")


@pytest.mark.faults
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[2]", b"\xff", b'{"A GPU with 80 GB/cnn/8/32/float32": 0}', b'{"x": true}', b"[" * 99_999]
)
def test_a_damaged_memory_of_limits_is_passed_over(carry_out, tmp_path, content):
    (tmp_path / "results").mkdir()
    (tmp_path / "results/memory.json").write_bytes(content)
    runs = [tiny(seed) for seed in range(4)]
    report, _, crew = carry_out(runs, pack_size=4, count=1)
    assert report == Report(trained=4) and crew.submitted == [runs]
    assert stored(tmp_path) == keys(runs) and len(Store(tmp_path / "results", pytest.fail).frame()) == 4


# --- time ---------------------------------------------------------------------------------------------------------


def test_no_run_is_started_that_would_not_finish_in_time(carry_out):
    runs = [tiny(seed) for seed in range(6)]
    one = sweep.work(runs[:1])  # takes 40 seconds as measured, 100 in fact
    report, _, crew = carry_out(runs, count=1, time_limit=60, speed=one / 40, seen=one / 100)
    assert report == Report(trained=1, left=5) and crew.submitted == [[runs[0]]]
    report, _, crew = carry_out(runs, count=1, time_limit=0, speed=one / 40)
    assert report == Report(found=1, left=5) and crew.submitted == []
    report, _, crew = carry_out(runs, count=1, time_limit=200, speed=one / 100)
    assert report == Report(found=1, trained=5)


def test_a_shorter_run_still_fits_where_a_longer_one_does_not(carry_out):
    long, short = tiny(0, train_size=5_000), tiny(1)
    report, _, crew = carry_out([long, short], time_limit=100, speed=sweep.work([short]) / 90)
    assert report == Report(trained=1, left=1) and crew.submitted == [[short]]


def test_a_run_longer_than_the_limit_is_started_and_stopped_by_it(carry_out, tmp_path):
    # 10 epochs of 64 seconds; the limit leaves room for four
    run = tiny(epochs=10)
    began, speed = time.time(), sweep.work([run]) / 640
    report, said, crew = carry_out([run], time_limit=300, speed=speed)
    assert report == Report(left=1) and crew.submitted == [[run]] and not said
    [stop] = crew.stops
    assert stop == pytest.approx(began + 300 - 64, abs=5)  # the epoch that is then running ends in time
    report, _, crew = carry_out([run], time_limit=60, speed=speed)
    assert report == Report(left=1) and crew.submitted == []  # not even one epoch fits


def test_without_a_limit_nothing_is_measured_and_nothing_stops(carry_out):
    _, _, crew = carry_out([tiny(epochs=10)])
    assert crew.measured == [] and crew.stops == [None]


# --- what killed sweeps leave -------------------------------------------------------------------------------------


def checkpoint(folder, runs, content="half a pack"):
    path = checkpoint_of(folder, [run.key() for run in runs])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    path.with_suffix(".keys").write_text("\n".join(run.key() for run in runs))
    return path


@pytest.mark.faults
def test_rubbish_is_removed_and_results_and_checkpoints_stay(carry_out, tmp_path):
    folder, runs = tmp_path / "results", [tiny(seed) for seed in range(4)]
    carry_out(runs[:2])
    half = checkpoint(folder, runs[1:3])
    stale = checkpoint(folder, runs[:2])
    bare = checkpoint(folder, [tiny(7)])
    bare.unlink()
    nameless = half.with_name("0123456789abcdef-1.pt")
    torn = half.with_name("0123456789abcdef.pt")
    for path in (nameless, torn):
        path.write_text("what is it?")
    torn.with_suffix(".keys").write_text(runs[3].key()[:7])
    rubbish = [folder / f".{runs[0].key()}.123.part", half.with_name(f"{half.name}.123.part")]
    for path in rubbish:
        path.write_text("half a res")
    assert carry_out(runs[:2])[0] == Report(found=2)
    assert {path.name for path in half.parent.iterdir()} == {half.name, half.with_suffix(".keys").name}
    assert not any(path.exists() for path in (*rubbish, stale)) and stored(tmp_path) == keys(runs[:2])


def test_a_pack_with_a_checkpoint_is_formed_again(carry_out, tmp_path):
    runs = [tiny(seed) for seed in range(6)]
    carry_out(runs[:1])
    checkpoint(tmp_path / "results", runs[3:5])
    _, _, crew = carry_out(runs, pack_size=3, count=1)
    assert crew.submitted == [runs[3:5], [runs[1], runs[2], runs[5]]]


# --- Ctrl-C -------------------------------------------------------------------------------------------------------


def interrupt(monkeypatch, times):
    """The first `times` waits of the sweep are ended by Ctrl-C."""
    wait, calls = sweep.wait, []

    def wait_or_stop(*args, **options):
        calls.append(args)
        if len(calls) <= times:
            raise KeyboardInterrupt
        return wait(*args, **options)

    monkeypatch.setattr(sweep, "wait", wait_or_stop)


@pytest.mark.faults
@pytest.mark.parametrize("deadly", [False, True])
def test_ctrl_c_lets_running_packs_finish_and_starts_no_other(carry_out, tmp_path, monkeypatch, deadly):
    runs = [tiny(seed) for seed in range(6)]
    interrupt(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        carry_out(runs, deadly={runs[1].key(): 1} if deadly else {})
    assert stored(tmp_path) == keys(runs[: 1 if deadly else 2])


@pytest.mark.faults
def test_a_second_ctrl_c_stops_at_once(tmp_path, monkeypatch):
    interrupt(monkeypatch, 2)
    crew = Crew(takes=0.5)
    with pytest.raises(KeyboardInterrupt):
        Sweep(Store(tmp_path), crew, device=None, data_folder=None, say=lambda _: None).carry_out([tiny(0), tiny(1)])
    assert crew.stopped and Store(tmp_path).keys() == set()


# --- how far a plan is, and what is still to come -----------------------------------------------------------------

SMOKE = plan.grid_runs("grids", "smoke", "cifar10")


def test_the_outlook_counts_a_shared_run_once_and_chosen_cells_at_most(tmp_path):
    here = made_up.fill(tmp_path, SMOKE[:5])
    grids, schedules = outlook.of(["grids", "schedules"], "smoke", "cifar10", here.frame())
    assert (grids.done, grids.planned) == (5, len(SMOKE))
    # 4 algorithms, each with and without decay, one fresh seed
    assert len(grids.missing) == len(SMOKE) - 5 + 8
    shared = keys(plan.grid_runs("schedules", "smoke", "cifar10")) & keys(SMOKE)
    grid = plan.grid_runs("schedules", "smoke", "cifar10")
    assert shared and len(schedules.missing) == len(grid) - len(shared) + plan.chosen_count("schedules", "smoke")


def test_the_outlook_of_a_finished_grid_has_its_chosen_cells(tmp_path):
    here = made_up.fill(tmp_path, SMOKE)
    chosen = plan.winner_runs("grids", "smoke", "cifar10", here.frame())
    made_up.fill(tmp_path, chosen[:2])
    [view] = outlook.of(["grids"], "smoke", "cifar10", here.frame())
    assert (view.done, view.planned) == (len(SMOKE) + 2, len(SMOKE) + len(chosen)) and view.missing == chosen[2:]
    made_up.fill(tmp_path, chosen)
    assert outlook.of(["grids"], "smoke", "cifar10", here.frame())[0].missing == []


def test_the_estimate_adds_up(tmp_path):
    here = made_up.fill(tmp_path, SMOKE[:4])
    size = here.bytes_per_result()
    crew = Crew(count=4, speed=2)
    views = outlook.of(["grids"], "smoke", "cifar10", here.frame())
    table, hours = outlook.estimate(views, Sweep(here, crew, device=None, data_folder=None, pack_size=3))
    missing = views[0].missing
    assert hours == pytest.approx(sweep.work(missing) / 2 / 4 / 3600)
    assert len(crew.measured) == 1  # every size once
    from decoupled import engine, models

    head, grids, total, about = table.splitlines()
    weights = 4 * 3 * models.parameter_count("cnn", 8)
    row = ["grids", f"4/{len(SMOKE)}", str(len(missing)), str(2 * len(missing))]
    flop = f"{sweep.work(missing) * engine.step_flops(SMOKE[0]):.1e}"
    assert head.split() == ["experiment", "done", "missing", "epochs", "FLOP", "hours", "disk,", "MB"]
    assert grids.split() == [*row, flop, f"{hours:.2f}", f"{len(missing) * size / 1e6:.1f}"]
    disk = f"{(len(missing) * size + 4 * 3 * weights) / 1e6:.1f}"
    assert total.split() == ["total", *row[1:], flop, f"{hours:.2f}", disk]
    assert about.startswith("at most, with 4 worker(s) on A GPU with 80 GB;")


def test_the_estimate_uses_the_speed_seen_and_measures_nothing_that_is_done(tmp_path):
    runs = [tiny(seed) for seed in range(4)]
    crew = Crew(speed=1, seen=4)
    sweeper = Sweep(Store(tmp_path), crew, device=None, data_folder=None)
    assert sweeper.seconds(runs) == pytest.approx(sweep.work(runs))
    sweeper.carry_out(runs[:2])
    assert sweeper.seconds(runs) == pytest.approx(sweep.work(runs) / 4) and len(crew.measured) == 1
    idle = Crew()
    table, hours = outlook.estimate(
        [outlook.Outlook("grids", 4, 4, [])], Sweep(Store(tmp_path), idle, device=None, data_folder=None)
    )
    assert hours == 0 and idle.measured == [] and table.splitlines()[-1].split()[:3] == ["total", "4/4", "0"]


def test_the_copy_beside_a_single_run_on_a_cpu_costs_what_it_costs(tmp_path):
    runs = [tiny(seed) for seed in range(4)]
    one, crew = sweep.work(runs[:1]), Crew(speed=1, seen=1)
    together, single = (Sweep(Store(tmp_path), crew, device="cpu", data_folder=None, pack_size=k) for k in (4, 1))
    assert together.seconds(runs) == pytest.approx(4 * one) and together.seconds(runs[:1]) == pytest.approx(2 * one)
    assert single.seconds(runs) == pytest.approx(8 * one)
    single.carry_out(runs[:1])  # as fast as the crew says, copy and all
    assert single.seconds(runs[:1]) == pytest.approx(one)
    on_a_gpu = Sweep(Store(tmp_path), crew, device=None, data_folder=None)
    assert on_a_gpu.seconds(runs[:1]) == pytest.approx(one)


def test_a_speed_that_cannot_be_measured_is_one_line(tmp_path):
    class Broken(Crew):
        def submit(self, function, /, *args):
            future: Future = Future()
            future.set_exception(RuntimeError("CUDA error: no kernel image\nmany lines"))
            return future

    with pytest.raises(RuntimeError, match=r"^a worker could not measure its speed: CUDA error: no kernel image$"):
        Sweep(Store(tmp_path), Broken(), device=None, data_folder=None).measure(tiny())
