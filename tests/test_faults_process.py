"""Processes that are killed, stopped, started twice or hang; kills are real, fifty of them at seeded random moments."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import SimpleNamespace

import nbformat
import odd_workers
import pytest
from forked import members, wait_for_orphans
from test_sweep import Crew, tiny

from decoupled import publish, sweep, workers
from decoupled.store import Store
from decoupled.sweep import Report, Sweep

LINUX = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="follows processes in /proc")
pytestmark = [pytest.mark.faults, LINUX]
FORKED = Path(__file__).with_name("forked.py")
KILLS, PATIENCE_S = 50, 120


@pytest.fixture
def forked(tmp_path):
    """Carries out a function of forked.py in a process of its own; what it returns."""

    def run(name):
        folder = tmp_path / "Läufe, all of them"
        done = subprocess.run(
            [sys.executable, FORKED, name, folder], capture_output=True, text=True, timeout=600, check=False
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return json.loads(done.stdout)

    return run


# --- kill -9 ----------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_sweep_killed_at_fifty_moments_loses_nothing_and_repeats_nothing(forked):
    found = forked("kill_sweeps")  # after every kill it checks that what was stored is untouched and whole
    assert found["killed"] == KILLS and found["stored"] > 0
    assert found["checkpoints"] > 0  # some kills came in the middle of a run
    assert found["failed"] == {} and found["left"] == [] and found["complete"] and found["same"]


@pytest.mark.long
def test_workers_killed_at_fifty_moments_lose_nothing_and_repeat_nothing(forked):
    found = forked("kill_workers")
    assert found["killed"] == KILLS
    assert set(found["failed"].values()) <= {"its worker died 3 times"}
    assert found["trained"] == found["stored"] == found["asked"] - len(found["failed"])
    assert found["complete"] and found["same"]


def test_a_worker_that_dies_while_its_speed_is_measured_is_asked_again(tmp_path):
    class Mortal(Crew):
        deaths = 2

        def submit(self, function, /, *args):
            if function is workers.measure and self.deaths:
                self.deaths -= 1
                future: Future = Future()
                future.set_exception(BrokenProcessPool("a worker died"))
                return future
            return super().submit(function, *args)

    crew = Mortal(speed=4.0)
    assert Sweep(Store(tmp_path), crew, device=None, data_folder=None).measure(tiny()).seconds_per_image == 0.25
    crew.deaths = 99
    with pytest.raises(RuntimeError, match=r"^a worker could not measure its speed: a worker died$"):
        Sweep(Store(tmp_path), crew, device=None, data_folder=None).measure(tiny())
    assert crew.deaths == 99 - sweep.TRIES


TRAINING = """
import os, signal, threading, time
from pathlib import Path
import odd_workers
from decoupled import sweep, workers
from decoupled.runs import RunConfig
from decoupled.store import Store

def kill():
    while not list(Path(folder).glob("*.json")):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)

threading.Thread(target=kill, daemon=True).start()
sweep.train = odd_workers.few
runs = [RunConfig(**fields) for fields in planned]
sweep.Sweep(Store(folder), workers.Local([None]), device="cpu", data_folder=None, pack_size=1).carry_out(runs)
"""


@pytest.mark.long
def test_a_killed_kernel_is_one_line_and_the_next_sweep_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(FORKED.parent))  # where odd_workers is
    monkeypatch.setattr(sweep, "train", odd_workers.few)
    runs = [tiny(seed, train_size=512, epochs=3) for seed in range(4)]
    text = f"folder = 'results'\nplanned = {[run.to_dict() for run in runs]}"
    cells = [nbformat.v4.new_code_cell(text, metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell(TRAINING)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, "training.ipynb")
    with pytest.raises(publish.NotebookError) as error:
        publish.execute(Path("training.ipynb"), {}, tmp_path / "out.ipynb")
    assert "\n" not in str(error.value) and "died" in str(error.value).lower()
    assert not (tmp_path / "out.ipynb").exists()
    folder = Store("results", pytest.fail)
    before = {path: path.read_bytes() for path in folder.folder.glob("*.json")}
    assert 0 < len(before) < 4 and len(folder.frame()) == len(before) and sweep.running(folder) == set()
    crew = workers.Local([None])
    try:
        report = Sweep(folder, crew, device="cpu", data_folder=None, say=pytest.fail).carry_out(runs)
    finally:
        crew.shutdown(now=True)
    assert report == Report(found=len(before), trained=4 - len(before))
    assert all(path.read_bytes() == content for path, content in before.items())  # not trained again


# --- Ctrl-C -----------------------------------------------------------------------------------------------------------

ENDLESS = """
import signal, sys
from types import SimpleNamespace
import odd_workers
from decoupled import data, sweep
from decoupled.__main__ import main

if __name__ == "__main__":  # not in the workers, which import this
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background has it ignored
    sweep.train, sweep.measure = odd_workers.sleep, odd_workers.made_up
    data.find = lambda *_, **__: SimpleNamespace(source="generated", fingerprint="")
    sys.exit(main("run --profile smoke --experiments fixed_lr --workers 1 --store results".split()))
"""


@pytest.mark.long
def test_the_second_ctrl_c_stops_at_once_where_the_first_waits(tmp_path):
    (tmp_path / "endless.py").write_text(ENDLESS)
    environment = os.environ | {"PYTHONPATH": str(FORKED.parent)}
    options: dict = {"cwd": tmp_path, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(
        [sys.executable, "-u", "endless.py"], **options, text=True, start_new_session=True
    ) as process:
        try:
            end = time.monotonic() + PATIENCE_S
            while not (tmp_path / "results/begun").exists():
                assert process.poll() is None and time.monotonic() < end
                time.sleep(0.02)
            time.sleep(0.2)  # for the sweep to begin to wait
            store = Store(tmp_path / "results")
            assert len(sweep.running(store)) == 1
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the sweep and to its worker
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("stopping: "):
                    break
            assert line == "stopping: 1 running pack(s) finish first; Ctrl-C again stops at once\n"
            time.sleep(0.5)
            assert process.poll() is None and len(sweep.running(store)) == 1
            os.killpg(process.pid, signal.SIGINT)
            _, error = process.communicate(timeout=PATIENCE_S)
            wait_for_orphans(process.pid, store.folder)  # the worker would sleep for days
        finally:
            for member in members(process.pid):
                os.kill(member, signal.SIGKILL)
    assert process.returncode == 130
    assert error == "decoupled: stopped; finished runs are kept, the same command goes on from here\n"
    assert sweep.running(store) == store.keys() == set()


# --- twice, hanging, clocks -------------------------------------------------------------------------------------------


@pytest.mark.long
def test_of_two_sweeps_that_start_together_one_trains_and_one_says_why_not(forked):
    found = forked("race")
    # on a busy machine the second may only begin when the first has trained all four runs
    assert all(outcome in ([1, 14], [10, 14]) for outcome in found["outcomes"])
    assert len(found["outcomes"]) == 6 and found["stored"] == 24


@pytest.mark.long
def test_a_run_that_hangs_fails_with_the_place_and_the_rest_goes_on(forked):
    found = forked("hang")
    assert found["trained"] == 4 and set(found["failed"]) == set(found["hung"])
    for line in found["said"]:
        assert re.fullmatch(r"run \w+ failed: it hangs: none of its epochs ended in time; .*\.hung shows where", line)
    assert len(found["said"]) == 2 and found["noted"] == found["failed"]
    assert len(found["logs"]) == 2 and all("in hang_sometimes" in log for log in found["logs"])
    assert found["again"] == [4, 2] and found["left"] == []  # the next sweep tries them again, and tidies up


def test_patience_is_that_of_the_sweep_and_many_times_what_an_epoch_should_take(tmp_path):
    sweeper = Sweep(Store(tmp_path), Crew(), device=None, data_folder=None, hang_s=60)
    pack = [tiny(seed, epochs=5) for seed in range(2)]
    assert sweeper._patience(pack) == 60  # nothing is measured for it
    sweeper.measured[sweep.size(pack[0])] = workers.Measured(0.5, "slow")
    images = 64 + 15_000 / 3 / 5  # of an epoch; after the last of five, 15,000 are evaluated, each for a third
    assert sweeper._patience(pack) == sweep.SLOW * 2 * images * 0.5


def test_a_clock_that_jumps_back_prolongs_no_time_limit(tmp_path, monkeypatch):
    """A made-up clock: the machine's own cannot be set back in a test."""
    clock = {"wall": 1e9, "passed": 0.0}
    made_up = SimpleNamespace(time=lambda: clock["wall"], monotonic=lambda: clock["passed"])
    monkeypatch.setattr(sweep, "time", made_up)

    class Slow(Crew):
        def train(self, future, pack, folder, device, data_folder, checkpoint_s, hang_s, stop):
            clock["passed"] += 40
            clock["wall"] += 40 - 3600  # an hour back during every run
            super().train(future, pack, folder, device, data_folder, checkpoint_s, hang_s, None)

    crew, runs = Slow(count=1, takes=0, speed=5064 / 40), [tiny(seed) for seed in range(6)]  # 40 seconds each
    options: dict = {"device": None, "data_folder": None, "say": pytest.fail}
    assert Sweep(Store(tmp_path), crew, time_limit=100, **options).carry_out(runs) == Report(trained=2, left=4)
    assert crew.stops == [1e9 + 100 - 40, 1e9 - 3560 + 60 - 40]  # by the clock as it then stands


def test_a_checkpoint_from_before_the_last_one_by_the_clock_is_progress_all_the_same(tmp_path):
    class Backwards(Crew):
        def train(self, future, pack, folder, *rest):
            before = len(self.submitted)
            super().train(future, pack, folder, *rest)
            path = workers.checkpoint_of(folder, [run.key() for run in pack])
            if path.exists():
                os.utime(path, (1e9 - 60 * before, 1e9 - 60 * before))

    run = tiny()
    crew = Backwards(deadly={run.key(): 9}, further=True)
    sweeper = Sweep(Store(tmp_path), crew, device=None, data_folder=None, say=pytest.fail)
    assert sweeper.carry_out([run]) == Report(trained=1) and len(crew.submitted) == 10
