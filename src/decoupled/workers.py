"""The processes that train packs: one per CPU core or GPU of this machine; and what happens in each of them.

Single-threaded on a CPU (measured faster than one process with many threads, see benchmarks/README.md). Processes on
other machines are in `cluster`.
"""

import contextlib
import faulthandler
import hashlib
import multiprocessing
import multiprocessing.connection
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple, Protocol

from decoupled.runs import RunConfig
from decoupled.store import Store, provenance


class Workers(Protocol):
    """Processes that train packs."""

    @property
    def count(self) -> int:
        """Packs in flight at once."""

    @property
    def died(self) -> tuple[type[Exception], ...]:
        """What a future raises whose worker died."""

    def submit(self, function: Callable, /, *args: object) -> Future:
        """The result of `function` (of a module) in a worker; only plain data goes there and comes back."""

    def shutdown(self, now: bool = False) -> None:
        """End the workers; with `now` in the middle of their packs."""


def slots(device: str) -> list[str | None]:
    """The worker processes that `device` gets, each by the value of CUDA_VISIBLE_DEVICES that gives it its own GPU."""
    if device == "cuda":
        import torch

        count, visible = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
        return [*(visible.split(",") if visible else map(str, range(count)))][:count]
    if device == "mps":
        return [None]
    return [None] * (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


class Local:
    """One process per slot, each a pool of its own: when it dies, it alone is replaced, on the same slot."""

    died = (BrokenProcessPool,)

    def __init__(self, slots: Sequence[str | None]) -> None:
        self.slots, self.count = slots, len(slots)
        self.pools: dict[int, ProcessPoolExecutor] = {}
        self.free: queue.Queue[int] = queue.Queue()
        for slot in range(len(slots)):
            self.free.put(slot)
        # glibc would hand big blocks back to the system after every layer, and fetch them again
        for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"):
            os.environ.setdefault(name, str(2**30))

    def submit(self, function: Callable, /, *args: object) -> Future:
        """See Workers. A free worker takes it, hence never more than `count` at once."""
        slot = self.free.get()
        with ctrl_c_waits():
            try:
                future = self._pool(slot).submit(function, *args)
            except BrokenProcessPool:
                del self.pools[slot]
                future = self._pool(slot).submit(function, *args)
        future.add_done_callback(lambda _: self.free.put(slot))
        return future

    def _pool(self, slot: int) -> ProcessPoolExecutor:
        if slot not in self.pools:
            # spawn, not fork: torch's threads and CUDA do not survive a fork
            context = multiprocessing.get_context("spawn")
            self.pools[slot] = ProcessPoolExecutor(1, context, _start_worker, (self.slots[slot],))
        return self.pools[slot]

    def shutdown(self, now: bool = False) -> None:
        """See Workers."""
        for pool in self.pools.values():
            for process in list((pool._processes or {}).values()) if now else ():
                process.kill()
        for pool in self.pools.values():
            pool.shutdown(wait=True, cancel_futures=True)
        self.pools.clear()


@contextlib.contextmanager
def ctrl_c_waits() -> Iterator[None]:
    """Holds Ctrl-C back; a process started meanwhile never gets it, not even before _start_worker."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# --- in the worker ----------------------------------------------------------------------------------------------------


class Measured(NamedTuple):
    """Speed and device of a worker."""

    seconds_per_image: float  # of a training step of one run
    device: str


class Outcome(NamedTuple):
    """What became of a pack."""

    seconds: float  # of its training, in all sweeps together
    device: str
    ended: str = ""  # "time": a checkpoint was written; "memory": the device's was not enough; else all is stored


def checkpoint_of(folder: Path, keys: Sequence[str]) -> Path:
    """The checkpoint of a pack; beside it lies a list of its keys, whose hash is its name."""
    return folder / "checkpoints" / f"{hashlib.sha256(chr(10).join(keys).encode()).hexdigest()[:16]}.pt"


def hung_log(checkpoint: Path) -> Path:
    """Where a worker that hung left its stack; there is nothing in it as long as it does not hang."""
    return checkpoint.with_suffix(".hung")


_images = None  # one worker trains on one data set; loaded with its first pack
_watching = False


def _start_worker(visible: str | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the sweep, which decides
    if visible is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible
    _watch()


def _watch() -> None:
    """End with the process that started this one: an orphan must not train runs that the next sweep trains again."""
    global _watching
    parent = multiprocessing.parent_process()
    if _watching or parent is None:
        return
    _watching = True

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def _ends_if_hung(log: Path, seconds: float) -> Iterator[Callable[[], None]]:
    """End this process, its stack in `log`, when what this yields has not been called for so many seconds.

    By a thread that is not Python's: what hangs may hold the interpreter for ever.
    """
    with open(log, "w") as file:

        def alive() -> None:
            faulthandler.dump_traceback_later(seconds, exit=True, file=file)

        alive()
        try:
            yield alive
        finally:
            faulthandler.cancel_dump_traceback_later()
            log.unlink(missing_ok=True)


def measure(run: RunConfig, device: str | None) -> Measured:
    """Time a few training steps of one run. device: None for the best there is."""
    from decoupled import engine

    _watch()
    device = device or engine.default_device()
    measured = Measured(engine.seconds_per_image(run, device), engine.device_name(device))
    engine.release()
    return measured


def train(
    pack: list[RunConfig],
    folder: Path,
    device: str | None,
    data_folder: Path | None,
    checkpoint_s: float,
    hang_s: float,
    stop: float | None,
) -> Outcome:
    """Train one pack on images from `data_folder` and store its results in `folder`.

    device: None for the best there is. checkpoint_s: see engine.train. hang_s: the process ends, with its stack in
    `hung_log`, if no epoch ends for so long. stop: when to stop at the next end of an epoch, by time.time().
    """
    import torch

    from decoupled import data, engine

    global _images
    _watch()
    device = device or engine.default_device()
    if device == "cpu":
        torch.set_num_threads(1)
    name = engine.device_name(device)
    keys = [run.key() for run in pack]
    checkpoint = checkpoint_of(folder, keys)
    checkpoint.parent.mkdir(exist_ok=True)
    with _ends_if_hung(hung_log(checkpoint), hang_s) as alive:
        if _images is None or _images.source != pack[0].dataset:
            made_up = pack[0].dataset == "generated"
            _images = data.generated() if made_up else data.find(data_folder, allow_download=False)
        left = None if stop is None else stop - time.time()
        if left is not None and left <= 0:  # it stood in a queue
            return Outcome(0.0, name, "time")
        checkpoint.with_suffix(".keys").write_text("\n".join(keys))
        results = None
        try:
            results = engine.train(pack, _images, device, checkpoint, checkpoint_s, left, alive)
        except engine.OutOfTime:
            return Outcome(0.0, name, "time")
        except torch.OutOfMemoryError:
            pass  # only after this line has the exception let go of the tensors
        if results is None:
            engine.release()
            return Outcome(0.0, name, "memory")
        store = Store(folder)
        made = provenance(name, torch.__version__, _images.fingerprint)
        for run, result in zip(pack, results, strict=True):
            store.write(run, result, made)
        for path in (checkpoint, checkpoint.with_suffix(".keys")):
            path.unlink(missing_ok=True)
    return Outcome(sum(result["seconds"] for result in results), name)
