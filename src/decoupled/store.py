"""What exists: one JSON file per finished run, and the compact Parquet files that are committed.

A file is written under a temporary name, flushed to disk and renamed, so a crash at any instant leaves either no
result or a whole one. It is one JSON object in three lines: a checksum of the bytes that follow; what the run is, and
its numbers; its curves. A file that does not match its checksum (or is no result at all) is moved to `quarantine/` with
a message, and its run counts as missing. Every row of a Parquet file has its checksum, too.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from decoupled import plan
from decoupled.runs import ADDED, SEMANTICS, RunConfig

FORMAT = 2  # of the files, not of the numbers in them (that is runs.SEMANTICS)
NUMBERS = ("test_error", "val_error", "train_loss", "diverged_step", "decay_first_step", "seconds")
CURVES = ("loss_curve", "eval_epochs", "val_curve", "test_curve", "probabilities")  # lists; see engine.train
PROVENANCE = ("device", "commit", "torch", "python", "fingerprint", "finished")
CONFIG = tuple(RunConfig.__dataclass_fields__)
COLUMNS = ("key", *CONFIG, *NUMBERS, *CURVES, *PROVENANCE)
TABLE = {"format": 2, "semantics": SEMANTICS}  # columns of an exported file, beside `checksum`; format 1 had none
RESULT = re.compile(r"([0-9a-f]{16})\.json")  # the name of a result's file
HEAD = '{"checksum": "%s",\n'  # its first line
MEMORY = "memory.json"  # in a store's folder: the largest packs that fit into the memory of a device
LOCK = ".lock"  # there too: held by the sweep that writes; lists the keys of the runs that it trains now


class Stale(ValueError):
    """A result that another version of this code made."""


class Store:
    """The results of one machine, in one folder."""

    def __init__(self, folder: Path | str, say: Callable[[str], None] = print) -> None:
        self.folder, self.say = Path(folder), say

    def open_for_writing(self) -> None:
        """Make the folder; OSError in one line if nothing can be written there."""
        probe = self.folder / f".probe.{os.getpid()}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(bytes(4096))  # a full disk still takes an empty file
        except OSError as err:
            raise self.cannot_write(err) from None
        finally:
            with contextlib.suppress(OSError):
                probe.unlink()

    def cannot_write(self, err: OSError) -> OSError:
        """What to say, in one line, when writing into this store ended in `err`."""
        return OSError(f"cannot write results into {self.folder}: {err.strerror or err}")

    @contextlib.contextmanager
    def sole_writer(self) -> Iterator[None]:
        """Hold the store for one sweep at a time; OSError if another sweep has it. A killed sweep's hold is gone."""
        import fcntl  # POSIX only, like make; readers do not need it

        with open(self.folder / LOCK, "a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise OSError(f"another sweep is writing into {self.folder}; wait for it or stop it") from None
            yield

    def keys(self) -> set[str]:
        """Keys of the finished runs, by the names of their files."""
        try:
            return {match[1] for name in os.listdir(self.folder) if (match := RESULT.fullmatch(name))}
        except FileNotFoundError:
            return set()

    def write(self, run: RunConfig, result: dict[str, Any], provenance: dict[str, Any]) -> Path:
        """Store a finished run; the file is on the disk, whole, when this returns."""
        content = {
            "format": FORMAT,
            "semantics": SEMANTICS,
            "key": run.key(),
            "config": run.to_dict(),
            "result": {name: result[name] for name in NUMBERS},
            "provenance": provenance,
        }
        curves = {name: result[name] for name in CURVES}
        body = (_inner(content) + ",\n" + _inner({"curves": curves}) + "}").encode()
        target = self.folder / f"{run.key()}.json"
        _replace(target, _head(body) + body)
        return target

    def read(self, key: str, curves: bool = True) -> dict[str, Any]:
        """The row of one run; ValueError, in one line, if the file is not a whole result of this format.

        Without `curves` the row has none of CURVES, and the file is checked but not parsed as a whole.
        """
        path = self.folder / f"{key}.json"
        text = path.read_bytes()
        head, _, body = text.partition(b"\n")
        whole = head + b"\n" == _head(body)
        try:
            first, _, _ = body.partition(b",\n")  # the second line is the curves
            content = json.loads(b"{" + first + b"}" if whole and not curves else text)
            versions = content["format"], content["semantics"]
            whole = whole and content["key"] == key and (not curves or "curves" in content)
        except (ValueError, KeyError, TypeError, RecursionError):
            versions, whole = (FORMAT, SEMANTICS), False
        if versions != (FORMAT, SEMANTICS):  # files of another format keep their checksum elsewhere
            raise Stale(f"{path} has format {versions[0]}, semantics {versions[1]}: not this version")
        if not whole:
            raise ValueError(f"{path} is not a whole result (its checksum does not match)")
        row = {"key": key, **content["config"], **content["result"], **content["provenance"]}
        row |= content.get("curves", {})
        return {name: _with_nan(name, row[name]) for name in COLUMNS if curves or name not in CURVES}

    def bytes_per_result(self) -> float:
        """Mean size of the files of finished runs; 3,100 bytes, that of a run of 100 epochs, if there are none."""
        sizes = [(self.folder / f"{key}.json").stat().st_size for key in self.keys()]
        return sum(sizes) / len(sizes) if sizes else 3100.0

    def pack_limits(self) -> dict[str, int]:
        """The largest packs that fit into the memory of a device, as remembered; a damaged file counts as none."""
        try:
            limits = json.loads((self.folder / MEMORY).read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        good = isinstance(limits, dict) and all(type(limit) is int and limit > 0 for limit in limits.values())
        return limits if good else {}

    def limit_packs(self, what: str, runs: int) -> None:
        """Remember that packs of `what` (device and size of the runs) must not hold more than `runs` runs."""
        _replace(self.folder / MEMORY, json.dumps(self.pack_limits() | {what: runs}, indent=1).encode())

    def frame(self, curves: bool = True) -> pd.DataFrame:
        """One row per finished run, sorted by key; bad files are put into quarantine/ with a message.

        Without `curves`, as `read`: much faster for thousands of runs.
        """
        rows = []
        for key in sorted(self.keys()):
            try:
                rows.append(self.read(key, curves))
            except ValueError as err:
                self._quarantine(key, str(err))
        frame = as_frame(rows)
        return frame if curves else frame.drop(columns=list(CURVES))

    def _quarantine(self, key: str, why: str) -> None:
        aside = self.folder / "quarantine"
        try:
            aside.mkdir(exist_ok=True)
            os.replace(self.folder / f"{key}.json", aside / f"{key}.json")
            done = f"moved to {aside}"
        except OSError as err:
            done = f"it cannot be moved to {aside} ({err.strerror})"
        self.say(f"{why}; {done}, the run counts as missing")

    def put_aside(self) -> dict[str, list[str]]:
        """Keys of what lies in quarantine, by why: "stale" (another version of this code made it) or "damaged"."""
        aside, out = Store(self.folder / "quarantine"), dict[str, list[str]]()
        for key in sorted(aside.keys()):
            try:
                aside.read(key, curves=False)
            except ValueError as err:
                out.setdefault("stale" if isinstance(err, Stale) else "damaged", []).append(key)
        return out


def as_frame(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Rows as a data frame with every column of COLUMNS, in that order."""
    return pd.DataFrame(list(rows), columns=list(COLUMNS))


def select(frame: pd.DataFrame, runs: Sequence[RunConfig]) -> pd.DataFrame:
    """The rows of `frame` that belong to `runs`."""
    return frame[frame["key"].isin({run.key() for run in runs})].reset_index(drop=True)


def export(frame: pd.DataFrame, to: Path) -> tuple[Path, Path]:
    """Write `frame` to `to` (.parquet, everything) and beside it as CSV (one line per run, without the curves)."""
    if to.suffix != ".parquet":
        raise ValueError(f"results are exported to a .parquet file, got {to}")
    to.parent.mkdir(parents=True, exist_ok=True)
    frame = frame.sort_values(["schedule", "algorithm", "alpha", "decay", "seed", "key"]).reset_index(drop=True)
    whole = frame.assign(**TABLE)
    whole["checksum"] = _checksums(whole)
    tables = {
        to: lambda part: whole.to_parquet(part, index=False, compression="zstd"),
        to.with_suffix(".csv"): lambda part: frame.drop(columns=list(CURVES)).to_csv(part, index=False),
    }
    for target, write in tables.items():
        part = target.with_name(f".{target.name}.part")
        write(part)
        os.replace(part, target)
    return to, to.with_suffix(".csv")


def load(path: Path) -> pd.DataFrame:
    """The rows of an exported Parquet file.

    Raises ValueError, in one line, for a file that is not one or is of another version, for missing or unknown columns,
    for a row that does not match its checksum, and for one whose key is not that of its fields or stands twice.
    """
    try:
        frame = pd.read_parquet(path)
    except Exception as err:  # pyarrow raises many kinds
        raise ValueError(f"{path} is not a readable Parquet file: {str(err).splitlines()[0]}") from None
    for name, value in TABLE.items():
        found = ", ".join(map(str, frame[name].unique())) if name in frame else "none"
        if found not in (str(value), ""):
            raise ValueError(f"{path} has {name} {found}, must be {value}: another version of this code wrote it")
    there = set(frame.columns) | {name for name, _ in ADDED}
    if wrong := sorted(there ^ {*COLUMNS, *TABLE, "checksum"}):
        raise ValueError(f"{path} has missing or unknown columns: {', '.join(wrong)}")
    altered = frame["key"][frame["checksum"] != _checksums(frame.drop(columns="checksum"))]
    if len(altered):
        raise ValueError(f"{path}: row {altered.iloc[0]} does not match its checksum; the file was changed or damaged")
    frame = frame.assign(**{name: default for name, default in ADDED if name not in frame})
    for row in frame[["key", *CONFIG]].to_dict("records"):
        key = row.pop("key")
        fields = {str(name): value.item() if isinstance(value, np.generic) else value for name, value in row.items()}
        try:
            whole = RunConfig.from_dict(fields).key() == key
        except ValueError as err:
            raise ValueError(f"{path}: row {key}: {err}") from None
        if not whole:
            raise ValueError(f"{path}: row {key} does not have the key of its fields; it is from another version")
    if (twice := frame["key"][frame["key"].duplicated()]).any():
        raise ValueError(f"{path}: row {twice.iloc[0]} stands there twice")
    for name in (*NUMBERS, *CURVES, *PROVENANCE):  # RunConfig has seen to the others
        kind = str if name in ("probabilities", *PROVENANCE) else float | int
        values = [np.asarray(value).tolist() for value in frame[name]]
        lists = values if name in CURVES else [[value] for value in values]
        if not all(isinstance(some, list) and all(isinstance(x, kind) for x in some) for some in lists):
            raise ValueError(f"{path}: column {name} holds something else than it should")
        if name in CURVES:
            frame[name] = values
    return frame[list(COLUMNS)]


def _checksums(table: pd.DataFrame) -> list[str]:
    """Of each row: over all its values, and the number of rows, so that none can be lost or added unnoticed."""
    sums = []
    for row in table.to_dict("records"):
        plain = {str(name): np.asarray(value).tolist() for name, value in row.items()}
        text = json.dumps([len(table), plain], sort_keys=True, default=str)
        sums.append(hashlib.sha256(text.encode()).hexdigest())
    return sums


def merge_into(store: Store, frame: pd.DataFrame) -> int:
    """Add the rows of an exported frame to a store, leaving what is there; returns how many were new."""
    store.open_for_writing()
    new = frame[~frame["key"].isin(store.keys())]
    for row in new.to_dict("records"):
        plain = {str(k): v.item() if isinstance(v, np.generic) else v for k, v in row.items()}
        run = RunConfig.from_dict({name: plain[name] for name in CONFIG})
        result = {name: plain[name] for name in (*NUMBERS, *CURVES)}
        store.write(run, result, {name: plain[name] for name in PROVENANCE})
    return len(new)


def published(folder: Path = Path("data/results"), say: Callable[[str], None] = print) -> dict[str, pd.DataFrame]:
    """The committed results by profile: {'cpu': frame, ...}, from data/results/PROFILE.parquet."""
    return {path.stem: plan.same_images(load(path), say) for path in sorted(folder.glob("*.parquet"))}


def provenance(device: str, torch_version: str, fingerprint: str) -> dict[str, str]:
    """What is recorded beside every result: where, when and by what code it was made."""
    return {
        "device": device,
        "commit": commit(),
        "torch": torch_version,
        "python": ".".join(map(str, sys.version_info[:3])),
        "fingerprint": fingerprint,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def commit() -> str:
    """The commit of the code that runs, '+' appended if src/ differs from it; 'unknown' outside a checkout."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        words = ("--no-optional-locks", *words)  # killed in the middle, it must leave no lock behind
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _inner(content: dict[str, Any]) -> str:
    """A JSON object without its braces, in one line."""
    return json.dumps(_without_nan(content), allow_nan=False, sort_keys=True)[1:-1]


def _head(body: bytes) -> bytes:
    return (HEAD % hashlib.sha256(body).hexdigest()).encode()


def _replace(target: Path, content: bytes) -> None:
    """Give `target` this content; it is on the disk, whole, when this returns, and a crash leaves the old one."""
    part = target.with_name(f".{target.stem}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    except OSError:  # on a full disk, half a file takes room that others need
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def _without_nan(value: Any) -> Any:
    """JSON has no NaN and no infinity; both are stored as null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _with_nan(name: str, value: Any) -> Any:
    if name in CURVES:
        return [math.nan if item is None else item for item in value]
    return math.nan if value is None else value


# --- what the book and the notebooks look at --------------------------------------------------------------------------


class Results(NamedTuple):
    """The committed results of one profile, and those of this machine."""

    profile: str  # of the published results
    published: pd.DataFrame
    local_profile: str  # of this machine's results; '' if there are none
    local: pd.DataFrame


def open_results(profile: str = "auto", local_folder: str = "data/runs", committed: str = "data/results") -> Results:
    """The results that a page shows, of one version of the code and one of the images; it says what is left out.

    `auto` takes the best published profile, and this machine's profile with the most runs. ValueError, in one line,
    for a profile that does not exist or a committed file that is damaged.
    """
    if profile not in ("auto", *plan.PROFILES):
        raise ValueError(f"unknown profile {profile!r}; known: auto, {', '.join(plan.PROFILES)}")
    shared = published(Path(committed))
    local = Store(local_folder)
    ours = plan.same_images(local.frame())
    for why, keys in local.put_aside().items():
        print(f"left out: {len(keys)} {why} run(s), now in {local_folder}/quarantine: {', '.join(keys)}")
    best = next((name for name in plan.RANK if name in shared), plan.RANK[-1]) if profile == "auto" else profile
    counts = {name: len(plan.rows(ours, name)) for name in (plan.PROFILES if profile == "auto" else (profile,))}
    mine = max(counts, key=lambda name: counts[name])
    if not counts[mine]:
        mine = ""
    return Results(
        best,
        plan.rows(shared[best], best) if best in shared else ours.iloc[:0],
        mine,
        plan.rows(ours, mine) if mine else ours.iloc[:0],
    )


def origin(frame: pd.DataFrame) -> dict[str, str | int | float]:
    """Who made these rows: texts and counts for captions. Several makers are joined by commas."""

    def joined(name: str) -> str:
        return ", ".join(sorted(map(str, frame[name].unique()))) or "none"

    return {
        "runs": len(frame),
        "seeds": joined("seed"),
        "hardware": joined("device"),
        "commit": joined("commit"),
        "dataset": {"cifar10": "CIFAR-10", "generated": "GENERATED images, not CIFAR-10"}.get(
            joined("dataset"), joined("dataset")
        ),
        "torch": joined("torch"),
        "hours": round(float(frame["seconds"].sum()) / 3600, 2),
    }
