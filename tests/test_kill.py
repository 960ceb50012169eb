"""The command line killed and interrupted for real: no orphans, no half results, nothing trained twice, and it ends.

The sweep runs in a session of its own, in an empty folder and without a network, hence on generated images.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from decoupled import plan
from decoupled.store import Store

LISTEN = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, "-m", "decoupled", *sys.argv[1:]])
"""

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="follows processes in /proc"),
]
PATIENCE_S = 120  # on a machine that is busy with other things; nothing here measures time
ORPHANS_S = 20  # they notice at once; without a watch they would wait for ever


class Sweep:
    """`python -m decoupled run --profile smoke --experiments grids` as the leader of a session of its own."""

    def __init__(self, folder):
        proxy = "http://127.0.0.1:9"  # nobody listens there: a download fails at once
        environment = os.environ | {"https_proxy": proxy, "HTTPS_PROXY": proxy, "OMP_NUM_THREADS": "1"}
        command = ["run", "--profile", "smoke", "--experiments", "grids", "--workers", "2", "--store", "results"]
        self.results = folder / "results"
        with open(folder / "stdout", "a") as out, open(folder / "stderr", "w") as err:
            self.process = subprocess.Popen(
                # a shell that runs the tests in its background passes on that Ctrl-C is ignored; a terminal does not
                [sys.executable, "-c", LISTEN, *command],
                cwd=folder, env=environment, stdout=out, stderr=err, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    def members(self):
        """Ids of the living processes of the session: the sweep, its workers, Python's own helper process."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            except OSError:  # it has ended meanwhile
                continue
            if int(session) == self.process.pid and state not in "ZX":
                found.append(int(entry.name))
        return found

    def wait_for(self, what, condition, seconds=PATIENCE_S):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"waited for {what}"
            time.sleep(0.02)

    def wait_for_results(self, more_than):
        self.wait_for("a result", lambda: len(files(self.results)) > more_than or self.process.poll() is not None)

    def wait_for_workers(self):
        self.wait_for("workers", lambda: len(self.members()) >= 4 or self.process.poll() is not None)

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

    def begin():
        sweeps.append(Sweep(tmp_path))
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


def test_a_sweep_killed_three_times_loses_nothing_and_repeats_nothing(start, tmp_path):
    results, before, kills = tmp_path / "results", dict[str, bytes](), 0
    for _ in range(3):
        sweep = start()
        sweep.wait_for_results(more_than=len(before))
        time.sleep(random.uniform(0, 0.8))  # anywhere in the training or the writing of the next results
        if sweep.process.poll() is None:
            os.kill(sweep.process.pid, signal.SIGKILL)  # the sweep alone; its workers must find out
            kills += 1
        sweep.process.wait()
        sweep.wait_for_orphans()
        now = files(results)
        assert {name: now.get(name) for name in before} == before  # a run that is trained again gets another time
        assert whole(results) == {name.removesuffix(".json") for name in now}
        before = now
    assert kills > 0  # a very fast machine may be done before the third

    sweep = start()
    assert sweep.process.wait(PATIENCE_S) == 0, (tmp_path / "stderr").read_text()
    assert (tmp_path / "stderr").read_text() == ""
    sweep.wait_for_orphans()
    now = files(results)
    assert {name: now[name] for name in before} == before
    grid = plan.grid_runs("grids", "smoke", "generated")
    chosen = plan.winner_runs("grids", "smoke", "generated", Store(results).frame())
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
    os.killpg(sweep.process.pid, signal.SIGINT)  # as a terminal does: to the sweep and to its workers
    assert sweep.process.wait(PATIENCE_S) == 130
    error = (tmp_path / "stderr").read_text()
    assert error == "decoupled: stopped; finished runs are kept, the same command goes on from here\n"
    sweep.wait_for_orphans()
    kept = whole(sweep.results)
    assert 0 < len(kept) < len(plan.grid_runs("grids", "smoke", "generated"))
    assert not list(sweep.results.glob(".*.part"))
