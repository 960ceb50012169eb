"""No input ends in a traceback: every failure is one clear line, and nothing that is accepted breaks what reads it.

200 cases for each kind of input; `pytest tests/test_fuzz.py --hypothesis-profile=long` draws 2,000 others.
"""

import argparse
import contextlib
import gzip
import io
import math
import re
import shutil
import tarfile
import tempfile
import types
import zlib
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import made_up
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from decoupled import data, pdf, plan, publish, runs, schedules, session, store, sweep, units, workers
from decoupled.__main__ import _parser, main

ROOT = Path(__file__).parents[1]
FUZZ = settings(max_examples=max(200, settings().max_examples), suppress_health_check=list(HealthCheck))

ODD_TEXTS = [
    "", " ", "-", "--", "-1", "0", "nan", "inf", "-inf", "1e999", "1e-999", "9" * 5000, "0x10", "1_0", "٣", "½", "\0",
    "a\nb", "a\x85b", "\u2028", "\x1b[2J", "\udcff", "%s %(x)s", "{0}", "null", "true", "[", "[" * 100_000, "{}", "'",
    '"""', "__import__('os').abort()", "x" * 300, "a/" * 2000, "*", "~", "$HOME", "`id`", "auto", "gpu", "cpu", "smoke",
]  # fmt: skip
odd_text = st.sampled_from(ODD_TEXTS) | st.text(max_size=12)
odd_number = st.floats() | st.integers() | st.sampled_from([10**400, -(10**999), 5e-324, 1.7e308, -0.0, 2**31, 2**63])
odd_scalar = st.one_of(odd_text, odd_number, st.none(), st.booleans(), st.binary(max_size=4))
odd_value = st.recursive(
    odd_scalar | st.sampled_from([np.float64(0.1), np.int64(3), np.array([1, 2]), object, set(), 1j]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(odd_text, inner, max_size=2),
    max_leaves=4,
)


def one_clear_line(text: str) -> None:
    """A line that a terminal shows as it is, and that has something to say."""
    assert text.isprintable() and len(text) > 8, ascii(text)


def refused(error: BaseException) -> None:
    one_clear_line(str(error))
    event(type(error).__name__)


# --- the command line ---------------------------------------------------------------------------------------------


class Nobody:
    """In the place of workers, as in test_cli.py: every size has the same speed, and nothing is trained."""

    count, died = 1, ()

    def __init__(self, slots: object) -> None:
        pass

    def submit(self, function: object, run: object, device: object) -> Future:
        future: Future = Future()
        future.set_result(workers.Measured(1e-9, "A GPU"))
        return future

    def shutdown(self, now: bool = False) -> None:
        pass


@pytest.fixture(scope="module")
def good_frame() -> pd.DataFrame:
    with tempfile.TemporaryDirectory() as folder:
        return made_up.fill(folder, plan.grid_runs("grids", "smoke", "cifar10")[:6]).frame()


@pytest.fixture(scope="module")
def things(good_frame: pd.DataFrame) -> Iterator[Path]:
    """A folder with something of every kind that a command line can name."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store.export(good_frame, folder / "good.parquet")
        made_up.fill(folder / "results", plan.grid_runs("grids", "smoke", "cifar10")[:3])
        (folder / "file").write_bytes(b"junk")
        (folder / "bad.py").write_text("config = 1 / 0\n")
        (folder / "_config.yml").touch()
        (folder / "notebooks").mkdir()
        (folder / "book").mkdir()
        (folder / "book/_toc.yml").write_text("root: index\n")
        (folder / "site").mkdir()
        (folder / "site/index.html").write_text("<h1>A page</h1><a href='nowhere.html'>")
        yield folder


@pytest.fixture(scope="module", autouse=True)
def harmless() -> Iterator[None]:
    """Nothing is trained, nothing is downloaded, no notebook is run."""
    with pytest.MonkeyPatch.context() as patch:
        images = types.SimpleNamespace(source="generated", fingerprint="0" * 16)
        read = data.find
        patch.setattr(data, "find", lambda folder=None, **_: read(folder) if folder is not None else images)
        patch.setattr(workers, "Local", Nobody)
        patch.setattr(sweep.Sweep, "carry_out", lambda *_: sweep.Report())
        patch.setattr(session, "train_missing", lambda _, profile, *__: "smoke" if profile == "auto" else profile)
        patch.setattr(publish, "vendor_mathjax", lambda: None)
        patch.setattr(pdf, "write_pdf", lambda root: root / "book.pdf")
        patch.delenv("DATA_URL", raising=False)
        for name in ("https_proxy", "HTTPS_PROXY"):
            patch.setenv(name, "http://127.0.0.1:9")
        yield


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """In a fresh copy of `folder`."""
    with tempfile.TemporaryDirectory() as name:
        shutil.copytree(folder, place := Path(name, "copy"))
        with contextlib.chdir(place):
            yield


def outcome(argv: list[str]) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command line. Streams as in a process: UTF-8, stdout strict."""
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="strict")
    err = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(argv)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 99
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode())
    return status, texts[0], texts[1]


def ends_well(argv: list[str]) -> int:
    """The exit status, after a look at what was said: nothing, one line, or usage and a reason."""
    status, out, error = outcome(argv)
    event(f"status {status}")
    assert status in (0, 1, 2), status
    if status == 2:
        assert error.startswith("usage: python -m decoupled") and "error: " in error
    elif status == 1 and not error:
        assert argv[0] == "check" and "problem(s)" in out  # it lists them on stdout
    elif status == 1:
        assert error.startswith("decoupled: ") and error.endswith("\n")
        one_clear_line(error[:-1])
    else:
        for line in error.splitlines():
            one_clear_line(line)
    return status


def within(text: str) -> str:
    """The text as a path that leads nowhere else."""
    return re.sub(r"\.\.+", ".", text).lstrip("/")


def commands() -> dict[str, list[argparse.Action]]:
    """Every command with its options, as the parser has them."""
    (subparsers,) = (action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction))
    return {name: [a for a in sub._actions if a.dest != "help"] for name, sub in subparsers.choices.items()}


COMMANDS = commands()
NAMES = [*plan.PROFILES, *plan.EXPERIMENTS, *units.CONVENTIONS, "auto", "adamw", "sgd", "local", "parsl", "1", "0.001"]
PLACES = ["good.parquet", "file", "book", "results", "site", ".", "file/below", "no/where", "bad.py", "new.parquet"]
number = st.one_of(st.floats(0, 1), st.floats(), st.integers()).map(str)
anything = st.one_of(odd_text.map(within), number, st.sampled_from(NAMES), st.sampled_from(PLACES))
fitting: dict[str, st.SearchStrategy[str]] = {
    "profile": st.sampled_from(["auto", *plan.PROFILES]),
    "experiments": st.sampled_from(list(plan.EXPERIMENTS)),
    "source": st.sampled_from(list(units.CONVENTIONS)),
    "target": st.sampled_from(list(units.CONVENTIONS)),
    "optimizer": st.sampled_from(units.OPTIMIZERS),
    "executor": st.sampled_from(["local", "parsl"]),
    "names": st.sampled_from(["grids", "verdicts"]),
    **dict.fromkeys(("alpha", "decay", "momentum", "batch_size", "train_size", "epochs", "time_limit"), number),
    **dict.fromkeys(("workers", "pack"), st.integers(1, 4).map(str) | number),
    **dict.fromkeys(("store", "data", "to", "file", "site", "parsl_config"), st.sampled_from(PLACES)),
}


@st.composite
def command_line(draw: st.DrawFn) -> list[str]:
    """A command with options of its own, most with fitting values; now and then words that do not belong there."""
    name = draw(st.sampled_from(list(COMMANDS)))
    argv = [name]
    for action in COMMANDS[name]:
        if not draw(st.integers(0, 9)) < (9 if action.required else 4):
            continue
        argv += action.option_strings[:1]
        if action.nargs != 0:
            argv.append(draw(fitting.get(action.dest, anything) if draw(st.integers(0, 9)) < 7 else anything))
    if draw(st.integers(0, 9)) == 0:
        argv[draw(st.integers(0, len(argv))) :] = draw(st.lists(anything, max_size=3))
    return argv


@FUZZ
@given(argv=command_line())
def test_every_command_line_ends_well(things: Path, argv: list[str]) -> None:
    with inside(things):
        event(argv[0] if argv and argv[0] in COMMANDS else "no command")
        ends_well(argv)


# --- runs, schedules, units -----------------------------------------------------------------------------------------

BASE: dict[Any, Any] = runs.RunConfig("adamw", 1e-3, 2.5e-4).to_dict()
field_value = st.one_of(odd_value, st.sampled_from([*runs.ALGORITHMS, "weight", "bias+weight", "5,15", "1," * 3000]))


@FUZZ
@given(
    changes=st.dictionaries(st.sampled_from(list(BASE)) | odd_scalar, field_value, max_size=3),
    dropped=st.sets(st.sampled_from(list(BASE)), max_size=1),
)
def test_a_run_is_whole_or_refused_in_a_line_that_names_the_field(changes: dict, dropped: set) -> None:
    fields = {name: value for name, value in {**BASE, **changes}.items() if name not in dropped}
    try:
        run = runs.RunConfig.from_dict(fields)
    except ValueError as error:
        refused(error)
        assert any(name in str(error) for name in [*BASE, "unknown field(s)"])
    else:
        again = runs.RunConfig.from_dict(run.to_dict())
        assert again == run and len(run.key()) == 16 and run.steps >= 1
        assert (set(fields) - set(BASE)) == dropped == set()


schedule_text = st.one_of(
    odd_text,
    st.from_regex(r"[a-z]{0,11}\(?[-+0-9.einfa_, ]{0,12}\)?", fullmatch=True),
    st.builds(
        lambda name, numbers: f"{name}({', '.join(numbers)})",
        st.sampled_from(list(schedules.GRAMMAR)),
        st.lists(st.one_of(st.floats(0, 2), st.integers(1, 5), odd_number.filter(lambda x: abs(x) < 1e300)).map(str),
                 max_size=3),
    ),
)  # fmt: skip


@FUZZ
@given(text=schedule_text, epochs=st.integers(-1, 2**31), per_epoch=st.integers(-1, 50_000), where=st.floats(0, 2))
def test_a_schedule_is_total_or_refused_in_one_line(text: str, epochs: int, per_epoch: int, where: float) -> None:
    try:
        name = schedules.canonical(text)
        schedule = schedules.parse(text, epochs, per_epoch)
    except ValueError as error:
        refused(error)
        return
    event("accepted")
    assert schedules.canonical(name) == name
    total = epochs * per_epoch
    for step in (0, 1, total - 1, total, total + 1, int(total * where)):
        start, length = schedule.cycle(step)
        assert 0 <= schedule.eta(step) <= 1 and start <= step and length >= 1
        assert schedules.parse(name, epochs, per_epoch).eta(step) == schedule.eta(step)


maybe_number = odd_number | odd_value
positive = st.one_of(*[st.floats(1e-9, 1e9)] * 9, *[st.floats(0, exclude_min=True)] * 4, maybe_number)


@FUZZ
@given(
    decay=positive, alpha=positive, momentum=st.floats(0, 1) | maybe_number, sizes=st.tuples(*[positive] * 3),
    names=st.tuples(*[st.sampled_from([*units.CONVENTIONS, "normalized", "pytorch", ""])] * 2),
    optimizer=st.sampled_from(["sgd", "adamw", "sgd", "adamw", ""]),
)  # fmt: skip
def test_a_conversion_is_a_number_or_refused_in_one_line(decay, alpha, momentum, sizes, names, optimizer) -> None:
    more = dict(zip(("batch_size", "train_size", "epochs"), sizes, strict=True))
    try:
        found = units.convert(decay, *names, alpha=alpha, momentum=momentum, optimizer=optimizer, **more)
    except ValueError as error:
        refused(error)
    else:
        assert math.isfinite(found.decay) and found.decay >= 0 and float(units.as_text(found).split("\n")[0]) >= 0


# --- parameters of notebooks ------------------------------------------------------------------------------------------

parameters = {"profile": "auto", "local_results": "data/runs", "train": False, "algorithms": ["adam"]}


@FUZZ
@given(given_=st.dictionaries(st.sampled_from(list(parameters)) | odd_text, odd_value, max_size=2))
def test_a_parameter_has_the_type_of_its_default_or_is_refused_in_one_line(given_: dict) -> None:
    try:
        publish.check_parameters(ROOT / "notebooks/grids.ipynb", given_)
    except (publish.NotebookError, ValueError) as error:
        refused(error)
    else:
        assert all(type(value) is type(parameters[name]) for name, value in given_.items())


@FUZZ
@example(value="[" * 100_000)
@given(
    value=odd_text | odd_value | st.lists(st.sampled_from(["sgd", "adam"])) | st.lists(odd_text, max_size=2).map(str)
)
def test_names_are_known_ones_or_refused_in_one_line(value: Any) -> None:
    try:
        found = session.names("algorithms", value, ("sgd", "adam"))
    except ValueError as error:
        refused(error)
    else:
        assert found and set(found) <= {"sgd", "adam"}


@FUZZ
@given(
    profile=st.sampled_from(["auto", *plan.PROFILES]) | odd_value,
    folder=st.sampled_from(PLACES) | odd_text.map(within) | odd_value.filter(lambda value: not isinstance(value, str)),
    train=st.booleans() | odd_value,
)
def test_a_notebook_begins_or_is_refused_in_one_line(things: Path, profile: Any, folder: Any, train: Any) -> None:
    with inside(things), contextlib.redirect_stdout(io.StringIO()):
        try:
            results = session.begin(["grids"], profile, folder, train)
        except (ValueError, OSError) as error:
            refused(error)
        else:
            assert results.profile in plan.PROFILES and type(train) is bool


# --- files that are imported ------------------------------------------------------------------------------------------


def imported(content: bytes) -> None:
    """Import `content` into an empty store; if it is let in, everything that reads the store ends well too."""
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        Path("given.parquet").write_bytes(content)
        if ends_well(["import", "given.parquet", "--store", "here"]):
            assert not list(Path().glob("here/*.json"))  # all of it or nothing
            return
        frame = store.Store("here").frame()
        for names, kind in ((store.NUMBERS, float | int), (store.PROVENANCE, str), (store.CURVES, list)):
            assert all(isinstance(value, kind) for name in names for value in frame[name].tolist())
        if not plan.rows(frame, "smoke").empty:
            assert ends_well(["export", "--store", "here", "--profile", "smoke", "--to", "again.parquet"]) == 0
            assert ends_well(["import", "again.parquet", "--store", "there"]) == 0


@FUZZ
@given(content=st.binary(max_size=200), magic=st.booleans())
def test_random_bytes_are_imported_as_nothing(content: bytes, magic: bool) -> None:
    imported(b"PAR1" + content + b"PAR1" if magic else content)


@st.composite
def damage(draw: st.DrawFn) -> Any:
    """A function that cuts bytes out of a content, flips bits in it, or overwrites a stretch of it."""
    places = draw(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 7)), min_size=1, max_size=5))
    kind, stretch = draw(st.sampled_from(["cut", "flip", "overwrite", "end"])), draw(st.binary(min_size=1, max_size=9))

    def act(content: bytes) -> bytes:
        damaged = bytearray(content)
        for where, bit in places:
            # half of the damage falls on what describes the rest
            at = int(where * (len(damaged) - 1)) if bit % 2 else len(damaged) - 1 - int(where**3 * (len(damaged) - 1))
            if kind == "cut":
                del damaged[at : at + len(stretch)]
            elif kind == "flip":
                damaged[at] ^= 1 << bit
            elif kind == "overwrite":
                damaged[at : at + len(stretch)] = stretch
            else:
                del damaged[at:]
            if not damaged:
                return b""
        return bytes(damaged)

    return act


@FUZZ
@given(act=damage())
def test_a_damaged_file_is_refused_or_harmless(things: Path, act: Any) -> None:
    content = (things / "good.parquet").read_bytes()
    imported(act(content))


ODD_COLUMNS: list[Any] = [
    st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(), st.text(max_size=5), st.binary(max_size=5), st.none(),
    st.dates(), st.datetimes(), st.decimals(allow_nan=False, allow_infinity=False, places=2, max_value=9, min_value=0),
    st.lists(st.floats(), max_size=3), st.lists(st.text(max_size=3), max_size=3), st.lists(st.none(), max_size=2),
    st.lists(st.lists(st.integers(0, 9), max_size=2), max_size=2), st.fixed_dictionaries({"a": st.integers(0, 9)}),
    st.sampled_from([0, 1, -1]), st.sampled_from(["adam", "sgd", "", "0"]), st.floats(0, 1) | st.none(),
]  # fmt: skip


@st.composite
def odd_table(draw: st.DrawFn) -> Any:
    """A function that gives a table one odd column or more, or other ones."""
    unchecked = (*store.NUMBERS, *store.CURVES, *store.PROVENANCE)  # by RunConfig
    names = [draw(st.sampled_from(unchecked) | st.sampled_from(store.COLUMNS))]
    columns = {name: draw(st.lists(draw(st.sampled_from(ODD_COLUMNS)), min_size=6, max_size=6)) for name in names}
    one_cell, kind = (
        draw(st.booleans()),
        draw(st.sampled_from(["replace", "replace", "replace", "drop", "add", "twice"])),
    )

    def act(table: pa.Table) -> pa.Table:
        for name, values in columns.items():
            at = table.schema.get_field_index(name)
            if kind == "drop":
                table = table.drop_columns([name])
                continue
            if one_cell:
                values = [values[0], *table[name].to_pylist()[1:]]
            try:
                array = pa.array(values)
            except (pa.ArrowException, TypeError, OverflowError):  # Parquet has no such column
                array = pa.array([str(value) for value in values])
            if kind == "replace":
                table = table.set_column(at, name, array)
            else:
                table = table.append_column(name if kind == "twice" else f"{name}?", array)
        if kind == "replace":  # sealed as if it had been exported so
            with contextlib.suppress(pa.ArrowException):  # binary that is said to be text
                sums = store._checksums(table.drop_columns(["checksum"]).to_pandas())
                table = table.set_column(table.schema.get_field_index("checksum"), "checksum", pa.array(sums))
        return table

    return act


@FUZZ
@given(act=odd_table())
def test_odd_columns_are_refused_or_harmless(things: Path, act: Any) -> None:
    buffer = io.BytesIO()
    pq.write_table(act(pq.read_table(things / "good.parquet")), buffer)
    imported(buffer.getvalue())


# --- archives ---------------------------------------------------------------------------------------------------------


def small_archive() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in (*data.BATCHES, "batches.meta.txt"):
            info = tarfile.TarInfo(f"{data.FOLDER}/{name}")
            info.size, info.pax_headers = data.RECORD, {"comment": "ß" * 40}
            tar.addfile(info, io.BytesIO(bytes(data.RECORD)))
    return buffer.getvalue()


ARCHIVE = small_archive()


@FUZZ
@given(act=damage(), squeezed=st.booleans())
def test_a_damaged_archive_writes_nothing_but_the_files_of_cifar10(act: Any, squeezed: bool) -> None:
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "BATCH_IMAGES", 1)
        content = act(gzip.compress(ARCHIVE, 1)) if squeezed else gzip.compress(act(ARCHIVE), 1)
        (archive := Path(place, "archive")).write_bytes(content)
        folder = Path(place, "unpacked")
        try:
            data._unpack(archive, folder)
        except (OSError, ValueError, EOFError, tarfile.TarError, zlib.error) as error:  # what fetch expects
            event(type(error).__name__)
        found = [path for path in Path(place).rglob("*") if path not in (archive, folder)]
        assert all(path.parent == folder and path.is_file() and not path.is_symlink() for path in found)
        assert all(path.stat().st_size <= data.RECORD for path in found)
        assert {path.name for path in found} <= {*data.BATCHES, "batches.meta.txt"}
