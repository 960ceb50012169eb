"""workers: real processes of this machine, which GPU each of them sees, and what becomes of them."""

import contextlib
import json
import os
import signal
import threading
import time
from pathlib import Path

import odd_workers
import pytest
import torch
from plain_loop import make_images
from test_sweep import keys, tiny

from decoupled import data, engine, store, sweep, workers
from decoupled.store import Store
from decoupled.sweep import Report, Sweep
from decoupled.workers import Local, checkpoint_of

LINUX = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds worker processes in /proc")


@pytest.fixture
def crew():
    """Makes a Local, and ends it."""
    made: list[Local] = []

    def make(count=1):
        made.append(Local([None] * count))
        return made[-1]

    yield make
    for each in made:
        each.shutdown(now=True)


@pytest.fixture(scope="module")
def images():
    """Those on which odd_workers train."""
    return make_images()


# --- slots --------------------------------------------------------------------------------------------------------


def test_a_cpu_has_a_slot_per_core_and_mps_has_one():
    assert 1 <= len(workers.slots("cpu")) <= (os.cpu_count() or 1) and set(workers.slots("cpu")) == {None}
    assert workers.slots("mps") == [None]


@pytest.mark.parametrize(
    ("visible", "count", "slots"),
    [
        (None, 3, ["0", "1", "2"]),
        ("5,2", 2, ["5", "2"]),
        ("GPU-8932f937,MIG-3", 2, ["GPU-8932f937", "MIG-3"]),
        ("0,1,-1,3", 2, ["0", "1"]),  # CUDA takes no notice of what follows a number that does not exist
    ],
)
def test_every_gpu_that_torch_sees_has_a_slot(monkeypatch, visible, count, slots):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert workers.slots("cuda") == slots


def test_a_worker_that_replaces_another_sees_the_same_gpu():
    crew = Local(["GPU-a", "GPU-b", "GPU-a"])
    try:
        seen = [crew.submit(os.getenv, "CUDA_VISIBLE_DEVICES").result() for _ in range(6)]  # one after the other
        assert seen == ["GPU-a", "GPU-b", "GPU-a"] * 2
        for process in crew.pools[1]._processes.values():
            process.kill()
        seen = [crew.submit(os.getenv, "CUDA_VISIBLE_DEVICES") for _ in range(3)]
        died = [isinstance(future.exception(), crew.died) for future in seen]
        again = [crew.submit(os.getenv, "CUDA_VISIBLE_DEVICES").result() for _ in range(3)]
        assert sorted(again) == ["GPU-a", "GPU-a", "GPU-b"]
        assert [future.result() for future in (seen[0], seen[2])] == ["GPU-a"] * 2 and not died[0] and not died[2]
    finally:
        crew.shutdown()


# --- results ------------------------------------------------------------------------------------------------------


def numbers(row):
    left_out = {"seconds", *store.PROVENANCE}
    return json.dumps({name: value for name, value in row.items() if name not in left_out}, sort_keys=True)


def trained(run, images):
    [result] = engine.train([run], images)
    return numbers({"key": run.key(), **run.to_dict(), **result})


def test_workers_store_what_the_engine_gives_and_a_bad_run_does_not_stop_them(tmp_path, crew):
    good = [tiny(0), tiny(1, alpha=0.05), tiny(2)]
    bad = tiny(3, dataset="cifar10")
    said: list[str] = []
    folder = Store(tmp_path / "mit Leerzeichen, λ", said.append)
    missing = tmp_path / "no images here"
    runs = [good[0], bad, *good[1:]]
    report = Sweep(folder, crew(2), device="cpu", data_folder=missing, say=said.append).carry_out(runs)
    assert report.trained == 3 and report.found == report.left == 0
    assert report.failed == {bad.key(): said[0].partition(" failed: ")[2]}
    assert len(said) == 1 and said[0].startswith(f"run {bad.key()} failed: data_batch_1.bin is missing in {missing}")
    images = data.generated()
    for run in good:
        row = folder.read(run.key())
        assert numbers(row) == trained(run, images)
        assert row["fingerprint"] == images.fingerprint and row["device"] == engine.device_name("cpu")
        assert row["seconds"] > 0
    again = Sweep(folder, crew(), device="cpu", data_folder=None).carry_out(good)
    assert again == Report(found=3)
    left = {path.name for path in folder.folder.iterdir()}
    assert left == {".lock", "failed.txt", "checkpoints"} | {f"{run.key()}.json" for run in good}
    assert not list((folder.folder / "checkpoints").iterdir())


def test_the_speed_is_measured_in_a_worker(tmp_path, crew):
    sweeper = Sweep(Store(tmp_path), crew(), device=None, data_folder=None)
    measured = sweeper.measure(tiny())
    assert 0 < measured.seconds_per_image < 1 and measured.device == engine.device_name(engine.default_device())


@pytest.mark.faults
@pytest.mark.long
def test_a_pack_that_is_short_of_memory_in_a_real_worker_is_halved(tmp_path, crew, monkeypatch, images):
    monkeypatch.setattr(sweep, "train", odd_workers.short_of_memory)
    said: list[str] = []
    folder, runs = Store(tmp_path / "results", said.append), [tiny(seed) for seed in range(4)]
    sweeper = Sweep(folder, crew(), device="cpu", data_folder=None, pack_size=4, say=said.append)
    assert sweeper.carry_out(runs) == Report(trained=4)
    assert [line.partition(" do not fit")[0] for line in said] == ["4 runs in one pack", "2 runs in one pack"]
    assert {numbers(folder.read(run.key())) for run in runs} == {trained(run, images) for run in runs}
    assert (folder.folder / "released").read_text().split() == ["4", "2"]
    assert folder.pack_limits() == {f"{engine.device_name('cpu')}/cnn/8/32/float32": 1}


# --- time limit and death -----------------------------------------------------------------------------------------


def test_a_run_that_is_stopped_in_time_goes_on_from_its_checkpoint(tmp_path, crew, monkeypatch, images):
    monkeypatch.setattr(sweep, "train", odd_workers.telling)
    run, folder, local = tiny(train_size=512, epochs=30, evaluations=3), Store(tmp_path), crew()
    for _ in range(100):
        sweeper = Sweep(folder, local, device="cpu", data_folder=None, say=pytest.fail)
        monkeypatch.setattr(sweeper, "_stop", lambda pack: time.time() + 0.3)
        report = sweeper.carry_out([run])
        if report == Report(trained=1):
            break
        assert report == Report(left=1)
    epochs = [int(line) for line in (tmp_path / "resumed").read_text().split()]
    assert len(epochs) > 1 and epochs == sorted(set(epochs)) and epochs[0] > 0
    assert numbers(folder.read(run.key())) == trained(run, images)
    assert not list((tmp_path / "checkpoints").iterdir())


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


def trains(pid, folder):
    """Whether a process, which must be stopped to ask, is in the middle of a pack of this store."""
    with contextlib.suppress(OSError):  # it has ended, or closed the file
        for file in Path(f"/proc/{pid}/fd").iterdir():
            if (log := file.readlink()).suffix == ".hung":  # open from before the training until all is stored
                return not set(log.with_suffix(".keys").read_text().split()) <= Store(folder).keys()
    return False


def kill_in_mid_run(pids, folder):
    """Kill one of the processes `pids()` while it trains; its id in a list, which is empty if all ended before."""
    while found := pids():
        for pid in found:
            os.kill(pid, signal.SIGSTOP)
            if trains(pid, folder):
                os.kill(pid, signal.SIGKILL)
                return [pid]
            os.kill(pid, signal.SIGCONT)
        time.sleep(0.005)
    return []


def kill_when(condition, folder):
    """Kill the only worker of this process, in mid-run, once `condition()` holds; a thread, and what was killed."""
    killed: list[int] = []

    def kill():
        while not condition():
            time.sleep(0.005)
        killed.extend(kill_in_mid_run(workers_of_this_process, folder))

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    return thread, killed


@pytest.mark.faults
@pytest.mark.long
@LINUX
def test_a_worker_killed_in_mid_run_is_replaced_and_the_sweep_finishes(tmp_path, crew, monkeypatch):
    monkeypatch.setattr(sweep, "train", odd_workers.few)
    runs = [tiny(seed, train_size=512, epochs=3) for seed in range(5)]
    folder = Store(tmp_path / "results")
    before: dict[Path, bytes] = {}

    def the_first_run_is_stored():
        before.update({path: path.read_bytes() for path in folder.folder.glob("*.json")})
        return bool(before)

    killer, killed = kill_when(the_first_run_is_stored, folder.folder)
    sweeper = Sweep(folder, crew(), device="cpu", data_folder=None, pack_size=1, say=pytest.fail)
    report = sweeper.carry_out(runs)
    killer.join(10)
    assert len(killed) == 1 and before and list(sweeper.tried.values()) == [1]
    assert report == Report(trained=5)
    assert set(folder.frame()["key"]) == keys(runs)
    assert all(path.read_bytes() == content for path, content in before.items())  # not trained again


@pytest.mark.faults
@pytest.mark.long
@LINUX
def test_a_long_run_whose_worker_is_killed_ends_with_the_same_bits_from_its_checkpoint(
    tmp_path, crew, monkeypatch, images
):
    monkeypatch.setattr(sweep, "train", odd_workers.telling)
    pack = [tiny(seed, train_size=512, epochs=40, evaluations=8, augment="flip") for seed in range(2)]
    folder = Store(tmp_path)
    killer, killed = kill_when(checkpoint_of(tmp_path, [run.key() for run in pack]).exists, tmp_path)
    options: dict = {"device": "cpu", "data_folder": None, "pack_size": 2, "checkpoint_s": 0.0}
    assert Sweep(folder, crew(), **options, say=pytest.fail).carry_out(pack) == Report(trained=2)
    killer.join(10)
    assert len(killed) == 1 and 0 < int((tmp_path / "resumed").read_text()) < 40
    whole = engine.train(pack, images)
    for run, result in zip(pack, whole, strict=True):
        assert numbers(folder.read(run.key())) == numbers({"key": run.key(), **run.to_dict(), **result})
