"""cluster: packs on Parsl's workers, with Parsl's local provider and no network beyond loopback."""

import contextlib
import os
import re
import runpy
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("parsl")

import odd_workers
from forked import members
from parsl.launchers import SimpleLauncher
from parsl.providers import LocalProvider, SlurmProvider
from plain_loop import make_images
from test_sweep import keys, tiny
from test_workers import kill_in_mid_run, numbers, trained

from decoupled import plan, sweep
from decoupled.__main__ import main
from decoupled.cluster import Cluster
from decoupled.store import Store
from decoupled.sweep import Report, Sweep

READY = Path(__file__).parents[1] / "benchmarks/parsl"
TESTS = str(Path(__file__).parent)  # where odd_workers is
LINUX = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds worker processes in /proc")

CONFIG = """
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider

config = Config(
    executors=[
        HighThroughputExecutor(
            label="here", address="127.0.0.1", cores_per_worker=0.1, heartbeat_period=1, heartbeat_threshold=5,
            provider=LocalProvider(max_blocks=1{provider}), {options}
        )
    ],
    strategy_period=0.2,
    usage_tracking=3,
)
"""


def write(folder, options="max_workers_per_node=2", provider=""):
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "config.py"
    file.write_text(CONFIG.format(options=options, provider=provider))
    return file


def trainers_of(folder):
    """Ids of the processes that train the runs of a store in this folder."""
    all_of_them = members(os.getsid(0))

    def children(parents):
        return {pid for pid, (parent, _) in all_of_them.items() if parent in parents}

    managers = {pid for pid, (_, line) in all_of_them.items() if "process_worker_pool" in line and f"{folder}/" in line}
    return [pid for pid in children(children(managers)) if "spawn_main" in all_of_them[pid][1]]


@pytest.fixture
def no_orphans(monkeypatch, tmp_path):
    """Whatever the test starts must have ended soon after it; it is known by a mark in its environment."""
    mark = f"STARTED_BY={tmp_path}"
    monkeypatch.setenv(*mark.split("="))

    def started():
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                if mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found[entry.name] = (entry / "cmdline").read_bytes()
        return found

    yield
    end = time.monotonic() + 20
    while left := started():
        assert time.monotonic() < end, left
        time.sleep(0.1)


@pytest.fixture
def start(tmp_path, no_orphans, monkeypatch):
    """Makes a Cluster of 2 workers, or of what the options say, and ends it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", TESTS)
    made: list[Cluster] = []

    def make(**options):
        made.append(Cluster(write(tmp_path / "config", **options), tmp_path / "results"))
        return made[-1]

    yield make
    for each in made:
        each.shutdown(now=True)


# --- configurations -----------------------------------------------------------------------------------------------


def test_the_workstation_has_two_workers_per_gpu_and_stays_on_this_machine():
    names = runpy.run_path(str(READY / "workstation.py"))
    [executor] = names["config"].executors
    assert names["WORKERS_PER_GPU"] == 2
    assert executor.available_accelerators == [str(k) for k in range(2 * names["GPUS"])]
    assert executor.workers_per_node == 2 * names["GPUS"]
    assert executor.all_addresses == {"127.0.0.1"} and type(executor.provider) is LocalProvider
    assert executor.provider.max_blocks == 1 and names["config"].retries == 0


def test_slurm_asks_for_what_its_workers_need():
    names = runpy.run_path(str(READY / "slurm.py"))
    [executor] = names["config"].executors
    provider = executor.provider
    assert type(provider) is SlurmProvider and type(provider.launcher) is SimpleLauncher
    assert (provider.nodes_per_block, provider.max_blocks, provider.gpus_per_node) == (1, names["NODES"], names["GPUS"])
    workers = names["GPUS"] * names["WORKERS_PER_GPU"]
    assert len(executor.available_accelerators) == executor.workers_per_node == workers <= provider.cores_per_node
    for line in ("--account=my_account", "--partition=gpu", f"--gpus-per-node={names['GPUS']}"):
        assert f"#SBATCH {line}\n" in provider.scheduler_options
    assert "exclusive" not in provider.scheduler_options and provider.walltime == "08:00:00"
    assert names["config"].retries == 0  # the sweep does that


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (None, r"FileNotFoundError: \[Errno 2\] No such file or directory: '.*file\.py'"),
        ("config = 3", r"it must assign config = parsl\.config\.Config\(\.\.\.\)"),
        ("", r"it must assign config = "),
        ("import nonsense_module", r"ModuleNotFoundError: No module named 'nonsense_module'"),
        ("config = (", r"SyntaxError: '\(' was never closed \(file\.py, line 1\)"),
        ("from parsl.config import Config; config = Config(retries='two')", r"TypeCheckError: argument \"retries\" "),
        (
            "from parsl.config import Config; config = Config()",
            r"so a HighThroughputExecutor, not a ThreadPoolExecutor",
        ),
    ],
)
def test_a_wrong_configuration_is_one_line_and_status_1(tmp_path, capsys, monkeypatch, text, wanted):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path("file.py").write_text(text)
    assert main(["estimate", "--profile", "smoke", "--executor", "parsl", "--parsl-config", "file.py"]) == 1
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1
    assert re.match(rf"decoupled: file\.py(:| is not a Parsl configuration:) .*{wanted}", error), error
    assert not Path("data").exists()


def test_without_parsl_one_line_says_how_to_install_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "parsl", None)
    monkeypatch.setitem(sys.modules, "parsl.concurrent", None)
    assert main(f"estimate --profile smoke --executor parsl --parsl-config {write(tmp_path)}".split()) == 1
    assert capsys.readouterr().err.endswith("so does pip install '.[cluster]'\n")


# --- workers ------------------------------------------------------------------------------------------------------


def test_the_workers_of_all_blocks_and_nodes_are_counted(start):
    assert start(provider=", init_blocks=0, nodes_per_block=3", options="max_workers_per_node=4").count == 12


NVIDIA_SMI = """#!/bin/sh
echo "GPU 0: A GPU (UUID: GPU-0)"
echo "GPU 1: A GPU (UUID: GPU-1)"
"""


def test_two_workers_share_each_gpu(start, tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "nvidia-smi").write_text(NVIDIA_SMI)
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    gpus = re.search(r"available_accelerators=GPUS \* WORKERS_PER_GPU", (READY / "workstation.py").read_text())
    assert gpus  # the same as here
    crew = start(options="available_accelerators=2 * 2")
    assert crew.count == 4
    seen: dict[str, str] = {}
    end = time.monotonic() + 60
    while len(seen) < 4 and time.monotonic() < end:  # until each worker has had a task
        line = "sleep 0.2; echo $PARSL_WORKER_RANK $CUDA_VISIBLE_DEVICES"
        tasks = [crew.submit(subprocess.getoutput, line) for _ in range(4)]
        seen |= dict(task.result().split() for task in tasks)
    assert sorted(seen.items()) == [("0", "0"), ("1", "0"), ("2", "1"), ("3", "1")]


@LINUX
@pytest.mark.faults
@pytest.mark.long
def test_trainers_killed_in_mid_run_and_while_they_wait_lose_and_double_nothing(start, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "train", odd_workers.few)
    runs = [tiny(seed, train_size=512, epochs=4) for seed in range(10)]
    folder = Store(tmp_path / "results", pytest.fail)
    before: dict[Path, bytes] = {}
    killed: list[int] = []

    def kill():
        while len(folder.keys()) < 2:
            time.sleep(0.01)
        before.update({path: path.read_bytes() for path in folder.folder.glob("*.json")})
        killed.extend(kill_in_mid_run(lambda: trainers_of(tmp_path), folder.folder))

    crew = start()
    assert crew.count == 2
    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    sweeper = Sweep(folder, crew, device="cpu", data_folder=None, pack_size=1, say=pytest.fail)
    report = sweeper.carry_out(runs)
    killer.join(10)
    assert len(killed) == 1 and before and list(sweeper.tried.values()) == [1]
    assert report == Report(trained=10)
    assert folder.keys() == keys(runs) == set(folder.frame()["key"])
    assert all(path.read_bytes() == content for path, content in before.items())  # not trained again
    images = make_images()
    assert all(numbers(folder.read(run.key())) == trained(run, images) for run in runs[:3])

    seen: set[str] = set()
    while len(seen) < crew.count:  # until each worker has had a task
        tasks = [crew.submit(subprocess.getoutput, "sleep 0.2; echo $PARSL_WORKER_RANK") for _ in range(crew.count)]
        seen |= {task.result(60) for task in tasks}
    idle = trainers_of(tmp_path)
    assert len(idle) == crew.count
    for pid in idle:
        os.kill(pid, signal.SIGKILL)
    tasks = [crew.submit(os.getpid) for _ in range(20)]
    lost = sum(isinstance(task.exception(60), crew.died) for task in tasks)
    assert lost <= crew.count  # a worker may learn of a death only by its next task, which the sweep tries again
    assert not {task.result() for task in tasks if task.exception() is None} & set(idle)

    # everything that Parsl writes lies in the store's folder, and it reports to nobody
    assert {path.name for path in tmp_path.iterdir()} == {"config", "results"}
    assert (folder.folder / "parsl/000/parsl.log").exists()
    assert crew.kernel.config.usage_tracking == 0
    crew.shutdown()
    crew.shutdown()  # once more does no harm


def test_jobs_that_do_not_start_end_in_one_line(start, tmp_path):
    crew = start(provider=", worker_init='echo no module of that name >&2; exit 3'")
    sweeper = Sweep(Store(tmp_path / "results"), crew, device="cpu", data_folder=None)
    with pytest.raises(RuntimeError) as error:
        sweeper.measure(tiny())
    assert str(error.value) == (
        "a worker could not measure its speed: Executor here failed due to: its jobs do not start: "
        "no module of that name"
    )


# --- the command line ---------------------------------------------------------------------------------------------


@LINUX
@pytest.mark.faults
@pytest.mark.long
def test_workers_end_with_a_command_that_is_killed_and_the_next_one_finishes(tmp_path):
    write(tmp_path)
    line = "run --profile smoke --experiments grids --pack 1 --store results"
    line += " --executor parsl --parsl-config config.py"
    proxy = "http://127.0.0.1:9"  # nobody listens there: the download of the images fails at once
    environment = os.environ | {"https_proxy": proxy, "HTTPS_PROXY": proxy, "PYTHONPATH": TESTS}
    options: dict = {"cwd": tmp_path, "env": environment}
    command = [sys.executable, "-c", "import odd_workers; odd_workers.command()", *line.split()]
    with subprocess.Popen(command, **options, stdout=subprocess.DEVNULL, start_new_session=True) as first:
        end = time.monotonic() + 120
        while not list((tmp_path / "results").glob("*.json")):
            assert first.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        first.kill()
        assert first.wait() == -signal.SIGKILL
        try:
            while members(first.pid):
                assert time.monotonic() < end, members(first.pid)
                time.sleep(0.1)
        finally:  # they must not outlive the test
            for member in members(first.pid):
                os.kill(member, signal.SIGKILL)
    before = {path: path.read_bytes() for path in (tmp_path / "results").glob("*.json")}
    write(tmp_path, options="max_workers_per_node=1")
    done = subprocess.run(command, **options, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(path.read_bytes() == content for path, content in before.items())
    wanted = plan.grid_runs("grids", "smoke", "generated")
    assert len(before) < len(wanted) and Store(tmp_path / "results").keys() >= keys(wanted)
