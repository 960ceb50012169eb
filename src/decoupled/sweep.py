"""Carry a plan out: packs of missing runs on worker processes, with progress, retries and a time limit.

Workers write their results into the store themselves, so a sweep that is killed loses only what was trained since the
last checkpoint; its workers notice and end.
"""

import contextlib
import errno
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from decoupled.runs import RunConfig
from decoupled.store import LOCK, Store
from decoupled.workers import Measured, Outcome, Workers, checkpoint_of, hung_log, measure, train

CPU_PACK = 4  # runs of a pack on a CPU: a third less time per run than alone in small batches (benchmarks/README.md)
TRIES = 3  # of a run whose worker died without getting further than the last time
HANG_S, SLOW = 3600.0, 10  # a pack hangs if no epoch ends for so long, and for so many times what one should take
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # of a disk: whatever is trained now would be lost
FAILED = "failed.txt"  # in the store's folder: a line [key, why] each time that a run failed


@dataclass
class Report:
    """What a sweep did: counts of runs, and one line for each that failed."""

    found: int = 0  # finished before
    trained: int = 0
    left: int = 0  # not started or not finished: no time
    failed: dict[str, str] = field(default_factory=dict)  # key -> why


def packs(
    runs: Sequence[RunConfig], size: int, workers: int = 1, begun: Sequence[Sequence[str]] = ()
) -> list[list[RunConfig]]:
    """The runs in packs of at most `size` runs of one shape, in the order of their first run.

    Runs of one shape that would not occupy all `workers` are spread over them, two or more in a pack.
    begun: the keys of packs that have a checkpoint; where all their runs are asked for they come first, as they were;
    where only some are, these begin anew.
    """
    left = {run.key(): run for run in runs}
    out = [[left.pop(key) for key in keys] for keys in begun if left.keys() >= set(keys)]
    sizes = {shape: _even(n, size, workers) for shape, n in Counter(run.shape() for run in left.values()).items()}
    open_packs: dict[tuple[object, ...], list[RunConfig]] = {}
    for run in left.values():
        shape = run.shape()
        if len(open_packs.get(shape, ())) in (0, sizes[shape]):
            out.append([])
            open_packs[shape] = out[-1]
        open_packs[shape].append(run)
    return out


def _even(count: int, size: int, workers: int) -> int:
    """The size of packs of `count` runs, such that the last one is not much smaller."""
    most = min(size, max(2, -(-count // workers)))
    return -(-count // -(-count // most))


def work(runs: Sequence[RunConfig]) -> int:
    """Images passed forward and backward, one that is only evaluated for a third: the unit of progress and of cost."""
    return sum(run.epochs * run.train_size + run.evaluated_images // 3 for run in runs)


def size(run: RunConfig) -> tuple[object, ...]:
    """What decides how fast a run is, and how much memory it takes, on a given device."""
    return run.network, run.width, run.batch_size, run.precision


def tidy(store: Store) -> list[list[str]]:
    """Remove what killed sweeps left in a store that no one writes into; the keys of every pack with a checkpoint."""
    for name in (".*.part", "checkpoints/*.part", "checkpoints/*.hung"):
        for rubbish in store.folder.glob(name):
            rubbish.unlink(missing_ok=True)
    have, begun = store.keys(), []
    for path in sorted((store.folder / "checkpoints").glob("*.keys")):
        keys = path.read_text(errors="replace").split("\n")
        checkpoint = path.with_suffix(".pt")
        if checkpoint == checkpoint_of(store.folder, keys) and checkpoint.exists() and not have.issuperset(keys):
            begun.append(keys)
        else:
            path.unlink()
    for checkpoint in (store.folder / "checkpoints").glob("*.pt"):
        if not checkpoint.with_suffix(".keys").exists():
            checkpoint.unlink()
    return begun


class Sweep:
    """Trains runs on `workers` and stores them in `store`.

    device: "cpu", or None for the best that a worker has. data_folder: where CIFAR-10 lies (unused by runs on generated
    images). pack_size: runs trained together, if they fit into the memory; None: CPU_PACK on a CPU, else 1. time_limit:
    seconds from now on; no pack is started that would not finish in time, but one that takes longer than all of that
    is: it stops in time and goes on from its checkpoint in the next sweep. checkpoint_s: see engine.train. hang_s: a
    pack is given up, as failed, if no epoch of it ends for so long and for SLOW times what an epoch should take.
    """

    def __init__(
        self,
        store: Store,
        workers: Workers,
        *,
        device: str | None,
        data_folder: Path | None,
        pack_size: int | None = None,
        time_limit: float | None = None,
        checkpoint_s: float = 300.0,
        hang_s: float = HANG_S,
        say: Callable[[str], None] = print,
    ) -> None:
        self.store, self.workers, self.device, self.say = store, workers, device, say
        self.pack_size = pack_size or (CPU_PACK if device == "cpu" else 1)
        self.for_workers = (store.folder.resolve(), device, data_folder and data_folder.resolve(), checkpoint_s)
        self.limit, self.hang_s = time_limit, hang_s
        self.deadline = None if time_limit is None else time.monotonic() + time_limit
        self.measured: dict[tuple[object, ...], Measured] = {}  # by size
        self.seen: dict[tuple[object, ...], tuple[float, int]] = {}  # by size: seconds and images of finished packs
        self.tried: dict[str, int] = {}  # by key
        self.stamps: dict[Path, int] = {}  # of the checkpoint of a pack when its worker died

    def measure(self, run: RunConfig) -> Measured:
        """Speed and device of a worker for runs of this size, measured there once, in a few seconds.

        RuntimeError, in one line, if it cannot be measured.
        """
        tries = 0
        while size(run) not in self.measured:
            tries += 1
            try:
                self.measured[size(run)] = self.workers.submit(measure, run, self.device).result()
            except Exception as err:
                if tries == TRIES or not isinstance(err, self.workers.died):
                    raise RuntimeError(f"a worker could not measure its speed: {_line(err)}") from None
        return self.measured[size(run)]

    def seconds(self, runs: Sequence[RunConfig]) -> float:
        """How long one worker takes for these runs: at the speed seen so far, or else measured."""
        total = 0.0
        for run in runs:
            spent, images = self.seen.get(size(run), (0.0, 0))
            total += work([run]) * (spent / images if images else self.measure(run).seconds_per_image)
        return total * self._copies(runs)

    def _copies(self, runs: Sequence[RunConfig]) -> int:
        """How many of each run are trained: two on a CPU where it stands alone in a pack, see engine.FEWEST."""
        return 2 if self.device == "cpu" and min(len(runs), self.pack_size) == 1 else 1

    def carry_out(self, runs: Sequence[RunConfig]) -> Report:
        """Train every run that the store does not hold, in the given order, and store it.

        The runs of a worker that dies are tried again, a pack that does not fit into memory is tried in halves, a run
        that raises or hangs is reported; the rest goes on. The first Ctrl-C lets running packs finish, the second
        stops. Raises OSError if the store cannot be written, also when its disk gets full, or another sweep holds it.
        """
        self.store.open_for_writing()
        with self.store.sole_writer():
            begun, have = tidy(self.store), self.store.keys()
            missing = list({run.key(): run for run in runs if run.key() not in have}.values())
            report = Report(found=len({run.key() for run in runs}) - len(missing))
            todo = packs(missing, self.pack_size, self.workers.count, begun)
            with tqdm(total=work(missing), unit="img", unit_scale=True, disable=not sys.stderr.isatty()) as bar:
                self._train(todo, report, bar)
            return report

    def _train(self, todo: list[list[RunConfig]], report: Report, bar: tqdm) -> None:
        flying: dict[Future, list[RunConfig]] = {}
        try:
            while todo or flying:
                while todo and len(flying) < self.workers.count:
                    pack = todo.pop(0)
                    if len(pack) > (room := self._room(pack)):
                        todo[:0] = [pack[:room], pack[room:]]
                    elif not self._fits(pack):
                        report.left += len(pack)
                    else:
                        limits = self._patience(pack), self._stop(pack)
                        flying[self.workers.submit(train, pack, *self.for_workers, *limits)] = pack
                note_running(self.store, [run for pack in flying.values() for run in pack])
                done, _ = wait(flying, return_when=FIRST_COMPLETED)
                for future in done:
                    todo[:0] = self._take(future, flying.pop(future), report, bar)
        except KeyboardInterrupt:
            self.say(f"stopping: {len(flying)} running pack(s) finish first; Ctrl-C again stops at once")
            try:
                for future in wait(flying).done:
                    self._take(future, flying[future], report, bar)
            except KeyboardInterrupt:
                self.workers.shutdown(now=True)
            raise
        except OSError:
            self.workers.shutdown(now=True)
            raise

    def _take(self, future: Future, pack: list[RunConfig], report: Report, bar: tqdm) -> list[list[RunConfig]]:
        """Enter what became of a pack into the report; returns the packs that must be tried again."""
        try:
            outcome: Outcome = future.result()
        except self.workers.died:
            have = self.store.keys()
            back = [run for run in pack if run.key() not in have]
            report.trained += len(pack) - len(back)
            log = hung_log(checkpoint_of(self.store.folder, [run.key() for run in pack]))
            if log.exists() and log.stat().st_size:
                self._fail(back, f"it hangs: none of its epochs ended in time; {log} shows where", report)
                return []
            again = self._again(pack, back)
            self._fail([run for run in back if run not in again], f"its worker died {TRIES} times", report)
            return [again] if again else []
        except Exception as err:  # a pack may fail in any way; the others go on
            if isinstance(err, OSError) and err.errno in FULL:
                raise self.store.cannot_write(err) from None
            self._fail(pack, _line(err), report)
            return []
        if outcome.ended == "memory":
            if len(pack) == 1:
                what = f"a single run does not fit into the memory of {outcome.device}"
                self._fail(pack, f"{what}; free memory there or use a bigger device", report)
                return []
            half = -(-len(pack) // 2)
            self.store.limit_packs(_what(outcome.device, pack[0]), half)
            self.say(f"{len(pack)} runs in one pack do not fit into the memory of {outcome.device}: trying {half}")
            return [pack[:half], pack[half:]]
        if outcome.ended == "time":
            report.left += len(pack)
            return []
        report.trained += len(pack)
        spent, images = self.seen.get(size(pack[0]), (0.0, 0))
        self.seen[size(pack[0])] = spent + outcome.seconds, images + work(pack) * self._copies(pack)
        bar.update(work(pack))
        return []

    def _fail(self, pack: list[RunConfig], why: str, report: Report) -> None:
        note_failed(self.store, pack, why)
        if pack and why not in report.failed.values():
            self.say(f"run {pack[0].key()} failed: {why}")
        report.failed |= {run.key(): why for run in pack}

    def _again(self, pack: list[RunConfig], back: list[RunConfig]) -> list[RunConfig]:
        """Those of `back`, left over from a pack whose worker died, that may be tried again."""
        checkpoint = checkpoint_of(self.store.folder, [run.key() for run in pack])
        stamp = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        # on a cluster every job ends one day: a death counts only if no checkpoint was written since the last one
        further = stamp not in (0, self.stamps.get(checkpoint, 0))  # clocks may go backwards
        self.stamps[checkpoint] = stamp
        for run in back:
            self.tried[run.key()] = 0 if further else self.tried.get(run.key(), 0) + 1
        return [run for run in back if self.tried[run.key()] < TRIES]

    def _room(self, pack: list[RunConfig]) -> int:
        """How many of these runs may stand in one pack, as far as is known."""
        limits = self.store.pack_limits() if len(pack) > 1 else {}
        return limits.get(_what(self.measure(pack[0]).device, pack[0]), len(pack)) if limits else len(pack)

    def _fits(self, pack: list[RunConfig]) -> bool:
        if self.deadline is None or self.limit is None:
            return True
        needed = self.seconds(pack)  # where no call of this length finishes it, each can do some of its epochs
        return needed / (pack[0].epochs if needed > self.limit else 1) < self.deadline - time.monotonic()

    def _stop(self, pack: list[RunConfig]) -> float | None:
        """When a worker must stop at the next end of an epoch, by time.time(), the clock that machines share."""
        if self.deadline is None:
            return None
        return time.time() + self.deadline - time.monotonic() - self.seconds(pack) / pack[0].epochs

    def _patience(self, pack: list[RunConfig]) -> float:
        """For how many seconds a worker may go without ending an epoch."""
        known = size(pack[0]) in self.measured or size(pack[0]) in self.seen
        return max(self.hang_s, SLOW * self.seconds(pack) / pack[0].epochs if known else 0.0)


def _what(device: str, run: RunConfig) -> str:
    return "/".join(map(str, (device, *size(run))))


def _line(err: BaseException) -> str:
    return (str(err).splitlines() or [type(err).__name__])[0]


# --- what other processes are told of a sweep -------------------------------------------------------------------------


def note_running(store: Store, runs: Iterable[RunConfig]) -> None:
    """Tell `running` which runs the sweep that holds the store trains now."""
    with contextlib.suppress(OSError):  # nothing depends on it
        (store.folder / LOCK).write_text("\n".join(run.key() for run in runs))


def running(store: Store) -> set[str]:
    """Keys of the runs that a sweep trains now; those of a sweep that was killed are not among them."""
    import fcntl

    with contextlib.suppress(FileNotFoundError), open(store.folder / LOCK) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return set(lock.read().split())
    return set()


def note_failed(store: Store, runs: Iterable[RunConfig], why: str) -> None:
    """Remember why runs failed."""
    with contextlib.suppress(OSError), open(store.folder / FAILED, "a") as file:  # the sweep says it, too
        file.writelines(json.dumps([run.key(), why]) + "\n" for run in runs)


def failed(store: Store) -> dict[str, str]:
    """Why runs that are not finished failed when they were last tried, by key."""
    why, have = dict[str, str](), store.keys()
    with contextlib.suppress(FileNotFoundError):
        for line in (store.folder / FAILED).read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError, TypeError, RecursionError):  # cut off by a crash
                key, reason = json.loads(line)
                why[str(key)] = str(reason)
    return {key: reason for key, reason in why.items() if key not in have}
