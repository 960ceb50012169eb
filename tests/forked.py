"""Sweeps in forked processes, for tests that kill many of them: torch is imported once, not once per sweep.

`python forked.py NAME FOLDER` carries out one of the functions at the end and prints what came of it as JSON. Sweeps,
their workers and what kills them are the real ones; only the way in which a worker starts is another than `spawn`.
"""

import contextlib
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from plain_loop import make_images, numbers

from decoupled import data, engine, sweep, workers
from decoupled.runs import RunConfig
from decoupled.store import Store

KILLS = 50
IMAGES = make_images()


def run_of(seed):
    return RunConfig(
        "adamw", 0.01, 0.01, dataset="generated", width=2, train_size=64, augment="flip", epochs=3, batch_size=32,
        seed=seed,
    )  # fmt: skip


def fork(function, *args):
    """Start a process that leads a session of its own and ends with what `function` returns; its id."""
    if pid := os.fork():
        return pid
    status = 99
    try:
        os.setsid()
        status = function(*args)
    except BaseException as err:
        print(f"{type(err).__name__}: {err}", file=sys.stderr, flush=True)
    os._exit(status)


def members(session):
    """Living processes of a session: parent and command line by id."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, parent, _, its = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it has ended meanwhile
            continue
        if int(its) == session and state not in "ZX":
            found[int(entry.name)] = int(parent), line
    return found


def wait_for_orphans(session, folder):
    end = time.monotonic() + 60
    while members(session) or not is_free(folder):
        assert time.monotonic() < end, "workers outlive their sweep"
        time.sleep(0.005)


def is_free(folder):
    """Whether nobody holds the store; a forked worker has inherited the hold of its sweep, a spawned one has not."""
    try:
        with Store(folder).sole_writer():
            return True
    except OSError:
        return False


def carry_out(folder, runs, say=lambda line: None, **options):
    """One sweep, on two workers, with a checkpoint after every epoch."""
    torch.set_num_threads(1)
    workers._images = IMAGES
    crew = workers.Local([None, None])
    options = {"device": "cpu", "data_folder": None, "pack_size": 1, "checkpoint_s": 0.0, "say": say} | options
    try:
        return sweep.Sweep(Store(folder), crew, **options).carry_out(runs)
    finally:
        crew.shutdown()


def quietly(folder, runs, to=None):
    report = carry_out(folder, runs)
    if to:
        to.write_text(json.dumps([report.trained, report.failed]))
    return 0


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.json")}


def check(folder, before):
    """What was there is there, untouched, and everything is whole; returns what there is now."""
    now = contents(folder)
    assert {name: now.get(name) for name in before} == before, "a finished run was lost or trained again"
    complaints: list[str] = []
    assert len(Store(folder, complaints.append).frame()) == len(now) and not complaints, complaints
    return now


def same_as_undisturbed(folder, runs):
    """Whether results are, to the bit, those of runs that nothing disturbed."""
    torch.set_num_threads(1)
    store, plain = Store(folder), [engine.train([run], IMAGES)[0] for run in runs]
    return numbers([{name: store.read(run.key())[name] for name in plain[0]} for run in runs]) == numbers(plain)


# --- what is done to them ---------------------------------------------------------------------------------------------


def kill_sweeps(folder):
    """kill -9 of a sweep at random moments, workers left to themselves; the next one goes on."""
    rng, runs, before, killed = random.Random(7), [run_of(seed) for seed in range(600)], dict[str, bytes](), 0
    resumed = 0
    for _ in range(KILLS):
        pid, enough, end = fork(quietly, folder, runs), len(before) + rng.randrange(4), time.monotonic() + 60
        while len(os.listdir(folder)) < enough and time.monotonic() < end:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.2))
        os.kill(pid, signal.SIGKILL)
        killed += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        wait_for_orphans(pid, folder)
        resumed += bool(list(folder.glob("checkpoints/*.pt")))
        before = check(folder, before)
    first = runs[: len(before) + 4]
    report = carry_out(folder, first)
    now = check(folder, before)
    left = [path.name for path in (*folder.glob("checkpoints/*.keys"), *folder.glob(".*.part"))]
    same = same_as_undisturbed(folder, first[:40])
    return {"killed": killed, "stored": len(before), "checkpoints": resumed, "failed": report.failed,
            "complete": {f"{run.key()}.json" for run in first} <= set(now), "same": same, "left": left}  # fmt: skip


def kill_workers(folder):
    """kill -9 of one of a sweep's two workers, at random moments; the sweep goes on."""
    rng, killed, asked, trained = random.Random(8), 0, 0, 0
    failed: dict[str, str] = {}
    while killed < KILLS:
        runs = [run_of(seed) for seed in range(asked, asked + 60)]
        asked += len(runs)
        pid = fork(quietly, folder, runs, folder.with_name("report"))
        stored = 0
        while not os.waitpid(pid, os.WNOHANG)[0]:
            time.sleep(rng.uniform(0, 0.1))
            crew = [member for member in members(pid) if member != pid]
            # no faster than this machine trains: a run whose worker dies three times is given up
            if crew and killed < KILLS and len(contents(folder)) > stored:
                with contextlib.suppress(ProcessLookupError):  # it has just ended
                    os.kill(rng.choice(crew), signal.SIGKILL)
                    killed, stored = killed + 1, len(contents(folder))
        report = json.loads(folder.with_name("report").read_text())
        trained, failed = trained + report[0], failed | report[1]
        check(folder, {})
    stored = len(contents(folder))
    carry_out(folder, [run_of(seed) for seed in range(asked)])  # those that met their third death
    return {"killed": killed, "asked": asked, "trained": trained, "stored": stored, "failed": failed,
            "complete": len(contents(folder)) == asked,
            "same": same_as_undisturbed(folder, [run_of(seed) for seed in range(40)])}  # fmt: skip


def race(folder):
    """Two sweeps that start at the same time on one store, six times."""
    outcomes = []
    for turn in range(6):
        runs = [run_of(seed) for seed in range(4 * turn, 4 * turn + 4)]
        pids = [fork(one_of_two, folder, runs) for _ in range(2)]
        outcomes.append(sorted(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids))
        check(folder, {})
    return {"outcomes": outcomes, "stored": len(contents(folder))}


def one_of_two(folder, runs):
    """10 + the number of runs that it trained, or 1 if the other one holds the store."""
    try:
        report = carry_out(folder, runs)
    except OSError as err:
        return 1 if re.fullmatch(r"another sweep is writing into .*; wait for it or stop it", str(err)) else 2
    return 10 + report.trained


def fill_disk(folder):
    """A sweep on a disk that gets full, another one that finds it so, and a third after it was made bigger."""
    runs, out = [run_of(seed) for seed in range(60)], dict[str, Any]()
    for name in ("full", "still full"):
        try:
            carry_out(folder, runs)
        except OSError as err:
            out[name] = str(err)
        out[f"left, {name}"] = [path.name for path in folder.glob("**/*.part")]
        before = check(folder, {})
    out["kept"] = len(before)
    subprocess.run(["mount", "-o", "remount,size=10m", folder], check=True)
    out["trained"] = carry_out(folder, runs).trained
    out["stored"] = len(check(folder, before))
    return out


def hang(folder):
    """Two runs that hang, one asleep and one that never lets go of the interpreter; the others are trained."""
    train = engine.train

    def hang_sometimes(runs, *args):
        if runs[0].seed == 1:
            time.sleep(1e6)
        if runs[0].seed == 2:
            re.match(r"(a+)+$", "a" * 64 + "b")  # within one call of C, for longer than anybody lives
        return train(runs, *args)

    engine.train = hang_sometimes
    said: list[str] = []
    runs = [run_of(seed) for seed in range(6)]
    report = carry_out(folder, runs, said.append, hang_s=2.5)
    logs = [(folder / f"checkpoints/{path.name}").read_text() for path in sorted(folder.glob("checkpoints/*.hung"))]
    engine.train = train
    noted = sweep.failed(Store(folder))
    again = carry_out(folder, runs, hang_s=2.5)
    return {"said": said, "trained": report.trained, "failed": report.failed, "noted": noted, "logs": logs,
            "hung": [runs[1].key(), runs[2].key()], "again": [again.found, again.trained],
            "left": sorted(path.name for path in folder.glob("checkpoints/*"))}  # fmt: skip


if __name__ == "__main__":
    train_part, val_part = data.split(64)
    data.split = lambda train_size: (train_part, val_part[:100])  # or most of the time would go into evaluation
    context = multiprocessing.get_context("fork")
    workers.multiprocessing.get_context = lambda _: context  # type: ignore[assignment]
    place = Path(sys.argv[2])
    place.mkdir(exist_ok=True)
    print(json.dumps(globals()[sys.argv[1]](place)))
