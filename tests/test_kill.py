"""The command line killed and interrupted for real: no orphans, no half results, nothing trained twice, and it ends.

The sweep runs in a session of its own, in an empty folder and without a network, hence on generated images; few and
small ones, see odd_workers.py.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest
from plain_loop import make_images
from test_workers import numbers, trained

from decoupled import plan
from decoupled.runs import RunConfig
from decoupled.store import Store
from decoupled.sweep import running

pytestmark = [
    pytest.mark.faults,
    pytest.mark.long,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="follows processes in /proc"),
]
PATIENCE_S = 120  # on a machine that is busy with other things; nothing here measures time
ORPHANS_S = 20  # they notice at once; without a watch they would wait for ever


class Sweep:
    """`python -m decoupled run --profile smoke`, or `code`, as the leader of its own session."""

    def __init__(self, folder, code=None):
        proxy = "http://127.0.0.1:9"  # nobody listens there: a download fails at once
        environment = os.environ | {"https_proxy": proxy, "HTTPS_PROXY": proxy, "OMP_NUM_THREADS": "1"}
        environment |= {"PYTHONPATH": str(Path(__file__).parent)}  # where odd_workers is
        code = code or "import odd_workers; odd_workers.command()"
        line = "run --profile smoke --experiments grids --workers 2 --pack 1 --store results"
        self.folder, self.results = folder, folder / "results"
        with open(folder / "stdout", "a") as out, open(folder / "stderr", "w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, *line.split()],
                cwd=folder, env=environment, stdout=out, stderr=err, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    def members(self):
        """Ids of the living processes of the session: the sweep, its workers, Python's own helper process."""
        return forked.members(self.process.pid)

    def wait_for(self, what, condition, seconds=PATIENCE_S):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"waited for {what}"
            time.sleep(0.02)

    def wait_for_results(self, more_than):
        self.wait_for("a result", lambda: len(files(self.results)) > more_than or self.process.poll() is not None)

    def wait_for_workers(self):
        self.wait_for("workers", lambda: len(self.members()) >= 4 or self.process.poll() is not None)

    def running(self):
        """Keys of the runs that it trains now."""
        while not (keys := running(Store(self.results))):  # for a moment each time, it has told nobody
            assert self.process.poll() is None
            time.sleep(0.001)
        return keys

    def wait_for_orphans(self):
        self.wait_for("the workers to end with the sweep", lambda: not self.members(), ORPHANS_S)

    def end(self):
        """Whatever is left of it must not outlive the test."""
        for member in self.members():
            os.kill(member, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def start(tmp_path):
    sweeps = []

    def begin(code=None):
        sweeps.append(Sweep(tmp_path, code))
        return sweeps[-1]

    yield begin
    for sweep in sweeps:
        sweep.end()


def files(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.json")}


def whole(folder):
    """The keys of the results; every one of them reads back without a complaint."""
    frame = Store(folder, say=pytest.fail).frame()
    assert not (folder / "quarantine").exists()
    return set(frame["key"])


def test_a_killed_sweep_loses_nothing_and_repeats_nothing(start, tmp_path):
    """One kill of the whole command; fifty, at moments of all kinds, are in test_faults_process.py."""
    results, sweep = tmp_path / "results", start()
    sweep.wait_for_results(more_than=0)
    time.sleep(random.uniform(0, 0.4))  # anywhere in the training or the writing of the next results
    os.kill(sweep.process.pid, signal.SIGKILL)  # the sweep alone; its workers must find out
    assert sweep.process.wait() == -signal.SIGKILL
    sweep.wait_for_orphans()
    before = files(results)
    assert whole(results) == {name.removesuffix(".json") for name in before} and before

    sweep = start()
    assert sweep.process.wait(PATIENCE_S) == 0, (tmp_path / "stderr").read_text()
    assert (tmp_path / "stderr").read_text() == ""
    sweep.wait_for_orphans()
    now = files(results)
    assert {name: now[name] for name in before} == before
    grid = plan.grid_runs("grids", "smoke", "generated")
    chosen = plan.winner_runs("grids", "smoke", "generated", Store(results).frame())
    # four algorithms' best cells and, shared by the two forms of a decay, the two best ones without
    assert whole(results) == {run.key() for run in [*grid, *chosen]} and len(chosen) == 6
    assert {path.suffix for path in results.iterdir() if path.is_file()} == {".json", ""}  # results and the lock
    assert not list(results.glob("checkpoints/*"))


@pytest.mark.parametrize("moment", ["while the workers start", "while they train"])
def test_ctrl_c_ends_in_one_line_and_keeps_what_runs(start, tmp_path, moment):
    sweep = start()
    if moment == "while they train":
        sweep.wait_for_results(more_than=0)
    else:
        sweep.wait_for_workers()
        time.sleep(random.uniform(0.1, 0.5))
    running = sweep.running()
    os.killpg(sweep.process.pid, signal.SIGINT)  # as a terminal does: to the sweep and to its workers
    assert sweep.process.wait(PATIENCE_S) == 130
    error = (tmp_path / "stderr").read_text()
    assert error == "decoupled: stopped; finished runs are kept, the same command goes on from here\n"
    sweep.wait_for_orphans()
    kept = whole(sweep.results)
    assert running <= kept and len(kept) < len(plan.grid_runs("grids", "smoke", "generated"))
    assert not list(sweep.results.glob(".*.part"))


LONG_RUN = RunConfig(
    "adamw", 1e-3, 1e-3, dataset="generated", width=2, train_size=512, augment="flip", epochs=40, batch_size=32,
    evaluations=8,
)  # fmt: skip
LONG = f"""
import odd_workers
from decoupled import sweep, workers
from decoupled.runs import RunConfig
from decoupled.store import Store

run = {LONG_RUN}
sweep.train = odd_workers.telling
crew = workers.Local([None])
report = sweep.Sweep(Store("results"), crew, device="cpu", data_folder=None, checkpoint_s=0.0).carry_out([run])
crew.shutdown()
print(report)
"""


def test_a_long_run_of_a_killed_sweep_goes_on_from_its_checkpoint_to_the_same_bits(start, tmp_path):
    sweep = start(code=LONG)
    sweep.wait_for(
        "a checkpoint", lambda: list(sweep.results.glob("checkpoints/*.pt")) or sweep.process.poll() is not None
    )
    for member in sweep.members():  # as when a machine fails: nobody has time for anything
        os.kill(member, signal.SIGKILL)
    sweep.process.wait()
    sweep.wait_for_orphans()
    assert not files(sweep.results) and list(sweep.results.glob("checkpoints/*.pt"))
    sweep = start(code=LONG)
    assert sweep.process.wait(PATIENCE_S) == 0, (tmp_path / "stderr").read_text()
    assert "trained=1, left=0, failed={}" in (tmp_path / "stdout").read_text()
    assert not list(sweep.results.glob("checkpoints/*"))
    assert 0 < int((sweep.results / "resumed").read_text()) < 40
    assert numbers(Store(sweep.results).read(LONG_RUN.key())) == trained(LONG_RUN, make_images())
