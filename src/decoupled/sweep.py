"""Carry a plan out on this machine: packs of missing runs on local slots, with progress, retries and a time limit.

One worker process per CPU core, single-threaded (measured faster than one process with many threads, see
benchmarks/README.md), or one per GPU. Workers write their results into the store themselves, so a sweep that is killed
loses only what was being trained; its workers notice and end.
"""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from decoupled.plan import RunConfig
from decoupled.store import Store, provenance


@dataclass
class Report:
    """What a sweep did: counts of runs, and one line for each that failed."""

    found: int = 0  # finished before
    trained: int = 0
    left: int = 0  # not started: no time
    failed: dict[str, str] = field(default_factory=dict)  # key -> why


def slots(device: str) -> int:
    """Worker processes that `device` gets: one per usable core, or one per GPU."""
    if device == "cpu":
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    import torch

    return max(1, torch.cuda.device_count()) if device == "cuda" else 1


def packs(runs: Sequence[RunConfig], size: int) -> list[list[RunConfig]]:
    """The runs in packs of at most `size` runs of one shape, in the order of their first run."""
    open_packs: dict[tuple[object, ...], list[RunConfig]] = {}
    out: list[list[RunConfig]] = []
    for run in runs:
        pack = open_packs.get(run.shape())
        if pack is None or len(pack) == size:
            pack = open_packs[run.shape()] = []
            out.append(pack)
        pack.append(run)
    return out


def work(runs: Sequence[RunConfig]) -> int:
    """Images passed forward and backward: the unit of progress for runs of one network."""
    return sum(run.epochs * run.train_size for run in runs)


def carry_out(
    runs: Sequence[RunConfig],
    store: Store,
    *,
    device: str,
    data_folder: Path | None,
    workers: int | None = None,
    pack_size: int = 1,
    time_limit: float | None = None,
    say: Callable[[str], None] = print,
) -> Report:
    """Train every run that `store` does not hold, in the given order, and store it.

    data_folder: where CIFAR-10 lies (unused by runs on generated images). time_limit: seconds; no pack is started that
    the speed seen so far would not finish in time. A worker that dies is replaced and its packs tried once more; a
    run that raises is reported and the rest goes on. The first Ctrl-C lets running packs finish, the second stops.
    Raises OSError if the store cannot be written or another sweep holds it.
    """
    store.open_for_writing()
    with store.sole_writer():
        # left by a killed worker; no one else writes now
        for rubbish in (*store.folder.glob(".*.part"), *store.folder.glob("checkpoints/*.part")):
            rubbish.unlink()
        have = store.keys()
        missing = list({run.key(): run for run in runs if run.key() not in have}.values())
        report = Report(found=len({run.key() for run in runs}) - len(missing))
        if missing:
            _Sweep(store, device, data_folder, workers or slots(device), time_limit, say, report).run(
                packs(missing, pack_size)
            )
        return report


class _Sweep:
    def __init__(
        self,
        store: Store,
        device: str,
        data_folder: Path | None,
        workers: int,
        time_limit: float | None,
        say: Callable[[str], None],
        report: Report,
    ) -> None:
        self.store, self.device, self.data_folder, self.workers = store, device, data_folder, workers
        self.limit, self.say, self.report = time_limit, say, report
        self.started = time.monotonic()
        self.speed = 0.0  # images per second of one worker, slowest pack seen

    def run(self, todo: list[list[RunConfig]]) -> None:
        tried: dict[str, int] = {}
        bar = tqdm(
            total=work([r for p in todo for r in p]), unit="img", unit_scale=True, disable=not sys.stderr.isatty()
        )
        with bar:
            while todo:
                with contextlib.suppress(BrokenProcessPool):
                    self._drain(todo, tried, bar)
        self.report.left += sum(map(len, todo))

    def _drain(self, todo: list[list[RunConfig]], tried: dict[str, int], bar: tqdm) -> None:
        """Work until nothing is left or a worker dies; packs that were in flight then stand in `todo` again."""
        # glibc would hand big blocks back to the system after every layer, and fetch them again
        for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"):
            os.environ.setdefault(name, str(2**30))
        # spawn, not fork: torch's threads and CUDA do not survive a fork
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(self.workers, context, _start_worker)
        flying: dict[Future[float], list[RunConfig]] = {}
        try:
            while todo or flying:
                while todo and len(flying) < self._room(todo[0], flying, tried):
                    if not self._fits(todo[0]):
                        self.report.left += sum(map(len, todo))
                        todo.clear()
                        break
                    with _ctrl_c_waits():
                        future = pool.submit(_work, todo[0], self.store.folder, self.device, self.data_folder)
                    flying[future] = todo.pop(0)  # only now: submit raises if a worker has died meanwhile
                done, _ = wait(flying, return_when=FIRST_COMPLETED)
                for future in done:
                    self._take(future, flying[future], bar)
                    del flying[future]
        except KeyboardInterrupt:
            self.say(f"stopping: {len(flying)} running pack(s) finish first; Ctrl-C again stops at once")
            try:
                for future, pack in flying.items():
                    with contextlib.suppress(BrokenProcessPool):  # a death must not start the sweep anew
                        self._take(future, pack, bar)
            except KeyboardInterrupt:
                for process in list((pool._processes or {}).values()):
                    process.kill()
            raise
        except BrokenProcessPool:
            # the pool cannot tell which worker died, so every pack in flight that did not finish counts a try
            for pack in flying.values():
                have = self.store.keys()
                back = [run for run in pack if run.key() not in have]
                for run in back:
                    tried[run.key()] = tried.get(run.key(), 0) + 1
                self.report.trained += len(pack) - len(back)
                again = [run for run in back if tried[run.key()] < 3]
                self.report.failed |= {run.key(): "its worker died three times" for run in back if run not in again}
                todo[:0] = [again] if again else []
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _room(self, pack: list[RunConfig], flying: dict[Future[float], list[RunConfig]], tried: dict[str, int]) -> int:
        """Packs that may be in flight: a run that was in flight when a worker died is tried again on its own."""
        return 1 if any(run.key() in tried for p in (pack, *flying.values()) for run in p) else self.workers

    def _fits(self, pack: list[RunConfig]) -> bool:
        if self.limit is None:
            return True
        left = self.limit - (time.monotonic() - self.started)
        return left > 0 and (not self.speed or work(pack) / self.speed < left)

    def _take(self, future: Future[float], pack: list[RunConfig], bar: tqdm) -> None:
        try:
            seconds = future.result()
        except BrokenProcessPool:
            raise
        except Exception as err:  # a pack may fail in any way; the others go on
            why = (str(err).splitlines() or [type(err).__name__])[0]
            if why not in self.report.failed.values():
                self.say(f"run {pack[0].key()} failed: {why}")
            self.report.failed |= {run.key(): why for run in pack}
            return
        self.report.trained += len(pack)
        speed = work(pack) / max(seconds, 1e-9)
        self.speed = min(self.speed or speed, speed)
        bar.update(work(pack))


@contextlib.contextmanager
def _ctrl_c_waits() -> Iterator[None]:
    """Holds Ctrl-C back; a process started meanwhile never gets it, not even before _start_worker."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# --- in the worker ----------------------------------------------------------------------------------------------------

_images = None  # one worker trains on one data set; loaded with its first pack


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the sweep, which decides
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)  # the sweep was killed: an orphan must not train runs that the next sweep trains again

    threading.Thread(target=watch, daemon=True).start()


def _work(pack: list[RunConfig], folder: Path, device: str, data_folder: Path | None) -> float:
    """Train one pack and store its results; returns the seconds it took."""
    import torch

    from decoupled import data, engine

    global _images
    started = time.monotonic()
    if device == "cpu":
        torch.set_num_threads(1)
    elif device == "cuda":
        device = f"cuda:{(multiprocessing.current_process()._identity or (1,))[0] % torch.cuda.device_count()}"
    if _images is None or _images.source != pack[0].dataset:
        _images = data.generated() if pack[0].dataset == "generated" else data.find(data_folder, allow_download=False)
    store = Store(folder)
    checkpoint = folder / "checkpoints" / f"{pack[0].key()}-{len(pack)}.pt"
    results = engine.train(pack, _images, device, checkpoint)
    made = provenance(engine.device_name(device), torch.__version__, _images.fingerprint)
    for run, result in zip(pack, results, strict=True):
        store.write(run, result, made)
    checkpoint.unlink(missing_ok=True)
    return time.monotonic() - started
