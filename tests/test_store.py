"""store: what is written comes back to the bit, what is damaged never does, and a crash leaves no half result."""

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import made_up
import numpy as np
import pandas as pd
import pytest

from decoupled import store
from decoupled.runs import RunConfig
from decoupled.store import Store

RUNS = [
    RunConfig("adamw", 1 / 3000, 1e-3 / 7, epochs=12, evaluations=3, dataset="generated"),
    RunConfig("sgd", 1e20, 0.0, epochs=2, seed=5),
    RunConfig("sgdw", 0.1, 2.5e-4, "step(0.1, 30, 60, 80)", train_size=50_000, decayed="weight"),
    RunConfig("adam", 1e-3, 0, "restarts(10, 2)", decay_unit="normalized", beta1=0.8, network="shakeshake26"),
]
RESULTS = [
    made_up.result(RUNS[0]),
    made_up.diverged(RUNS[1], step=3),
    made_up.without_validation(RUNS[2]),
    made_up.result(RUNS[3], train_loss=5e-324, seconds=1e300),
]


def rows_of(frame):
    """The rows of a frame as text in which equal bits are equal texts and nan equals nan."""
    return [json.dumps(row, default=lambda value: value.item()) for row in frame.to_dict("records")]


def expected_row(run, result):
    row = {"key": run.key(), **dataclasses.asdict(run), **result, **made_up.PROVENANCE}
    return json.dumps({name: row[name] for name in store.COLUMNS})


@pytest.fixture
def said():
    return []


@pytest.fixture
def filled(tmp_path, said):
    """A store with all of RUNS, in a folder whose name is not plain ASCII."""
    full = Store(tmp_path / "Ergebnisse für λ, dépôt 結果", said.append)
    full.open_for_writing()
    for run, result in zip(RUNS, RESULTS, strict=True):
        full.write(run, result, made_up.PROVENANCE)
    return full


# --- there and back -----------------------------------------------------------------------------------------------


def test_what_is_written_is_read_back_to_the_bit(filled, said):
    frame = filled.frame()
    assert tuple(frame.columns) == store.COLUMNS
    pairs = sorted(zip(RUNS, RESULTS, strict=True), key=lambda pair: pair[0].key())
    assert rows_of(frame) == [expected_row(run, result) for run, result in pairs]
    assert filled.keys() == {run.key() for run in RUNS}
    assert frame["diverged_step"].dtype == np.int64 and frame["val_error"].isna().sum() == 2
    assert not said
    for run in RUNS:
        fields = {name: value for name, value in filled.read(run.key()).items() if name in store.CONFIG}
        assert RunConfig.from_dict(fields) == run


def test_an_infinite_loss_comes_back_as_nan(tmp_path):
    folder = Store(tmp_path)
    folder.write(RUNS[1], made_up.diverged(RUNS[1]) | {"loss_curve": [math.inf, 1.5]}, made_up.PROVENANCE)
    curve = folder.read(RUNS[1].key())["loss_curve"]
    assert math.isnan(curve[0]) and curve[1] == 1.5


def test_an_empty_or_missing_store_has_no_rows(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        frame = Store(folder).frame()
        assert frame.empty and tuple(frame.columns) == store.COLUMNS and Store(folder).keys() == set()
    assert not (tmp_path / "nowhere").exists()  # reading makes no folder


def test_a_file_can_be_read_without_this_package(filled):
    content = json.loads((filled.folder / f"{RUNS[2].key()}.json").read_text(encoding="ascii"))
    assert content["config"] == dataclasses.asdict(RUNS[2])
    assert content["result"]["test_error"] == RESULTS[2]["test_error"] and content["result"]["val_error"] is None
    assert content["curves"]["loss_curve"] == RESULTS[2]["loss_curve"]


def test_reading_without_curves_gives_the_same_rows_otherwise(filled):
    whole, quick = filled.frame(), filled.frame(curves=False)
    assert rows_of(quick) == rows_of(whole.drop(columns=list(store.CURVES)))
    assert (quick.dtypes == whole.drop(columns=list(store.CURVES)).dtypes).all()


def test_select_takes_the_rows_of_the_given_runs(filled):
    frame = store.select(filled.frame(), [RUNS[3], RUNS[0], dataclasses.replace(RUNS[0], seed=9)])
    assert set(frame["key"]) == {RUNS[0].key(), RUNS[3].key()} and list(frame.index) == [0, 1]
    assert store.select(filled.frame(), []).empty


# --- crashes ------------------------------------------------------------------------------------------------------


@pytest.mark.faults
@pytest.mark.parametrize("moment", ["writing", "syncing", "renaming"])
def test_a_crash_leaves_no_result_or_the_old_one(filled, monkeypatch, moment, said):
    class Crash(BaseException):
        pass

    def crash(*_args, **_more):
        raise Crash

    def fail_half_way(path, mode):
        with open(path, mode) as file:
            file.write(b'{"checksum": "0123')
        raise Crash

    old = filled.read(RUNS[0].key())
    new = RunConfig("sgd", 0.5, 0.0)
    function = {
        "writing": (store, "open", fail_half_way), "syncing": (os, "fsync", crash), "renaming": (os, "replace", crash)
    }[moment]  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(*function, raising=False)
        for run in (new, RUNS[0]):
            with pytest.raises(Crash):
                filled.write(run, made_up.result(run, test_error=1.25), made_up.PROVENANCE)
    assert [path.suffix for path in filled.folder.iterdir() if path.stem.startswith(".")] == [".part"] * 2
    assert filled.keys() == {run.key() for run in RUNS}
    assert filled.read(RUNS[0].key()) == old
    assert len(filled.frame()) == len(RUNS) and not said
    filled.write(new, made_up.result(new), made_up.PROVENANCE)
    assert filled.read(new.key())["key"] == new.key()


def test_the_whole_file_is_on_the_disk_before_it_gets_its_name(filled, monkeypatch):
    run, steps = RunConfig("sgd", 0.5, 0.0), []

    def sync(descriptor):
        steps.append(os.fstat(descriptor).st_size)

    def rename(part, target):
        steps.append(os.path.getsize(part))
        before(part, target)

    before = os.replace
    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", rename)
    path = filled.write(run, made_up.result(run), made_up.PROVENANCE)
    assert steps == [path.stat().st_size] * 2


@pytest.mark.faults
def test_a_full_disk_is_an_error_and_no_result(filled, monkeypatch):
    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    run = RunConfig("sgd", 0.5, 0.0)
    with pytest.raises(OSError, match="No space left on device"):
        filled.write(run, made_up.result(run), made_up.PROVENANCE)
    assert filled.keys() == {run.key() for run in RUNS}
    assert not list(filled.folder.glob(".*.part"))  # it would take room that others need


DAMAGE = {
    "empty": lambda good: b"",
    "truncated": lambda good: good[: len(good) // 2],
    "last byte missing": lambda good: good[:-1],
    "zeros": lambda good: bytes(len(good)),
    "doubled": lambda good: good + good,
    "no JSON": lambda good: b"\x80\xffPAR1 rubbish",
    "a list": lambda good: b"[1, 2, 3]",
    "a number": lambda good: b"3",
    "nothing": lambda good: b"null",
    "another program's": lambda good: b'{"name": "notes", "checksum": "none"}',
    "deeply nested": lambda good: b"[" * 100_000,
    "a changed digit": lambda good: good.replace(b'"train_loss": 0.', b'"train_loss": 1.', 1),
    "without checksum": lambda good: b"{" + good.partition(b"\n")[2],
    "a new line at the end": lambda good: good + b"\n",
    "another first line": lambda good: good.replace(b'{"checksum"', b'{"Checksum"', 1),
}


@pytest.mark.faults
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_put_aside_with_one_message_and_counts_as_missing(filled, said, damage):
    path = filled.folder / f"{RUNS[0].key()}.json"
    good = path.read_bytes()
    bad = damage(good)
    assert bad != good
    path.write_bytes(bad)
    with pytest.raises(ValueError) as error:
        filled.read(RUNS[0].key())
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    frame = filled.frame()
    assert set(frame["key"]) == filled.keys() == {run.key() for run in RUNS[1:]}
    assert len(said) == 1 and str(path) in said[0] and "counts as missing" in said[0] and "\n" not in said[0]
    assert (filled.folder / "quarantine" / path.name).read_bytes() == bad
    assert len(filled.frame()) == len(RUNS) - 1 and len(said) == 1  # said once
    filled.write(RUNS[0], RESULTS[0], made_up.PROVENANCE)
    assert len(filled.frame()) == len(RUNS)


@pytest.mark.faults
def test_a_whole_result_under_another_runs_name_is_refused(filled, said):
    os.replace(filled.folder / f"{RUNS[0].key()}.json", filled.folder / f"{RUNS[1].key()}.json")
    assert set(filled.frame()["key"]) == {RUNS[2].key(), RUNS[3].key()} and len(said) == 1


@pytest.mark.faults
@pytest.mark.parametrize("name", ["FORMAT", "SEMANTICS"])
def test_a_result_of_another_version_is_put_aside(filled, said, monkeypatch, name):
    monkeypatch.setattr(store, name, getattr(store, name) + 1)
    assert filled.frame().empty
    assert len(said) == len(RUNS) and all("not this version" in line for line in said)


@pytest.mark.faults
def test_no_flipped_bit_is_overlooked(filled):
    path = filled.folder / f"{RUNS[3].key()}.json"
    good = path.read_bytes()
    for position in [*range(120), *range(120, len(good), 37)]:  # all of the first line, samples of the rest
        for bit in range(8):
            flipped = bytearray(good)
            flipped[position] ^= 1 << bit
            path.write_bytes(flipped)
            for curves in (True, False):
                with pytest.raises(ValueError, match=r"\.json (is not a whole result|has format)"):
                    filled.read(RUNS[3].key(), curves)


def test_a_result_of_the_first_format_is_named_as_such(filled, said):
    content = json.loads((filled.folder / f"{RUNS[0].key()}.json").read_text()) | {"format": 1}
    (filled.folder / f"{RUNS[0].key()}.json").write_text(json.dumps(content))
    assert set(filled.frame()["key"]) == {run.key() for run in RUNS[1:]}
    assert len(said) == 1 and "has format 1, semantics 1: not this version; moved to" in said[0]


def test_files_that_are_no_results_are_left_alone(filled, said):
    filled.limit_packs("A GPU/cnn/8", 4)
    (filled.folder / "notes.json").write_text("my own")
    assert filled.keys() == {run.key() for run in RUNS} and len(filled.frame()) == len(RUNS) and not said
    assert (filled.folder / "notes.json").read_text() == "my own"


# --- what is remembered beside the results ------------------------------------------------------------------------


def test_limits_of_packs_are_kept_by_device_and_size(filled, tmp_path):
    assert Store(tmp_path / "nowhere").pack_limits() == {}
    filled.limit_packs("A GPU/cnn/8", 4)
    filled.limit_packs("A GPU/cnn/16", 2)
    filled.limit_packs("A GPU/cnn/8", 3)
    assert Store(filled.folder).pack_limits() == {"A GPU/cnn/8": 3, "A GPU/cnn/16": 2}


def test_the_size_of_a_result_is_that_of_the_stored_ones(filled, tmp_path):
    sizes = [(filled.folder / f"{run.key()}.json").stat().st_size for run in RUNS]
    filled.limit_packs("A GPU/cnn/8", 4)
    assert filled.bytes_per_result() == pytest.approx(sum(sizes) / len(RUNS))
    run = RunConfig("adamw", 1 / 3000, 1e-3 / 7, epochs=100, evaluations=1)
    typical = Store(tmp_path / "typical")
    stated = typical.bytes_per_result()
    typical.open_for_writing()
    typical.write(run, made_up.result(run), made_up.PROVENANCE)
    assert typical.bytes_per_result() == pytest.approx(stated, rel=0.1)


# --- export and import --------------------------------------------------------------------------------------------


def test_export_load_and_import_return_the_same_bits(filled, tmp_path):
    frame = filled.frame()
    parquet, csv = store.export(frame, tmp_path / "ein Ordner" / "ré sults.parquet")
    assert sorted(path.name for path in parquet.parent.iterdir()) == ["ré sults.csv", "ré sults.parquet"]
    loaded = store.load(parquet)
    assert tuple(loaded.columns) == store.COLUMNS
    assert sorted(rows_of(loaded)) == sorted(rows_of(frame))
    other = Store(tmp_path / "elsewhere")
    assert store.merge_into(other, loaded) == len(RUNS)
    assert rows_of(other.frame()) == rows_of(frame)
    for run in RUNS:
        checksums = [json.loads((s.folder / f"{run.key()}.json").read_text())["checksum"] for s in (filled, other)]
        assert checksums[0] == checksums[1]
    assert store.export(other.frame(), tmp_path / "again.parquet")[0].read_bytes() == parquet.read_bytes()
    table = pd.read_csv(csv)
    assert len(table) == len(RUNS) and set(store.COLUMNS) - set(table.columns) == set(store.CURVES)
    for name in ("alpha", "decay", "train_loss", "test_error"):
        assert table[name].equals(loaded[name])


def test_import_adds_what_is_new_and_leaves_what_is_there(filled, tmp_path):
    frame = filled.frame()
    mine = Store(tmp_path / "mine")
    mine.open_for_writing()
    mine.write(RUNS[0], made_up.result(RUNS[0], test_error=1.0), made_up.PROVENANCE)
    before = (mine.folder / f"{RUNS[0].key()}.json").read_bytes()
    assert store.merge_into(mine, frame) == len(RUNS) - 1
    assert store.merge_into(mine, frame) == 0
    assert (mine.folder / f"{RUNS[0].key()}.json").read_bytes() == before
    assert mine.keys() == {run.key() for run in RUNS}


def test_an_empty_frame_survives_export(tmp_path):
    path, _ = store.export(Store(tmp_path).frame(), tmp_path / "none.parquet")
    assert store.load(path).empty and store.merge_into(Store(tmp_path), store.load(path)) == 0


def test_export_refuses_another_kind_of_file(filled, tmp_path):
    with pytest.raises(ValueError, match=r"^results are exported to a \.parquet file, got .*table\.xlsx$"):
        store.export(filled.frame(), tmp_path / "table.xlsx")


@pytest.mark.faults
@pytest.mark.parametrize(
    ("name", "value"),
    [("alpha", 0.5), ("seed", 77), ("decayed", "bias"), ("key", "0" * 16), ("alpha", -1.0), ("epochs", 0)],
)
def test_a_row_whose_key_is_not_that_of_its_fields_is_refused(filled, tmp_path, name, value):
    frame = filled.frame()
    frame.loc[2, name] = value
    path, _ = store.export(frame, tmp_path / "changed.parquet")
    with pytest.raises(ValueError) as error:
        store.load(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.faults
def test_unknown_and_missing_columns_are_named(filled, tmp_path):
    path, _ = store.export(filled.frame(), tmp_path / "columns.parquet")
    pd.read_parquet(path).drop(columns=["seed"]).assign(colour="red").to_parquet(path)
    with pytest.raises(ValueError, match=r"columns\.parquet has missing or unknown columns: colour, seed$"):
        store.load(path)


@pytest.mark.faults
@pytest.mark.parametrize("content", [b"", b"PAR1", b"key,alpha\n1,2\n", bytes(10_000), None])
def test_what_is_no_parquet_file_is_refused_in_one_line(filled, tmp_path, content):
    path = tmp_path / "other.parquet"
    if content is None:  # a real one, cut off
        store.export(filled.frame(), path)
        content = path.read_bytes()[:-20]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"other\.parquet is not a readable Parquet file: ") as error:
        store.load(path)
    assert "\n" not in str(error.value)


def test_a_missing_parquet_file_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.parquet is not a readable Parquet file: .*") as error:
        store.load(tmp_path / "nowhere.parquet")
    assert "\n" not in str(error.value)


def test_published_results_are_found_by_profile(filled, tmp_path):
    frame = filled.frame()
    store.export(frame.iloc[:1], tmp_path / "cpu.parquet")
    store.export(frame, tmp_path / "gpu.parquet")
    published = store.published(tmp_path)
    assert {name: len(rows) for name, rows in published.items()} == {"cpu": 1, "gpu": len(RUNS)}
    assert store.published(tmp_path / "nowhere") == {}


# --- one writer, a folder that can be written ---------------------------------------------------------------------


@pytest.mark.parametrize("below_a_file", ["results", "more/results"])
def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, below_a_file):
    (tmp_path / "file").write_text("not a folder")
    folder = tmp_path / "file" / below_a_file
    with pytest.raises(OSError) as error:
        Store(folder).open_for_writing()
    assert str(error.value).startswith(f"cannot write results into {folder}: ") and "\n" not in str(error.value)


@pytest.mark.faults
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder that not even root can write into")
def test_a_folder_that_cannot_be_written_is_one_line():
    with pytest.raises(OSError, match=r"^cannot write results into /proc/self: .+") as error:
        Store("/proc/self").open_for_writing()
    assert "\n" not in str(error.value)


HOLD = """
import sys
from decoupled.store import Store
with Store(sys.argv[1]).sole_writer():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.faults
def test_a_second_process_cannot_write_until_the_first_ends_or_is_killed(filled):
    with filled.sole_writer():
        second = subprocess.run([sys.executable, "-c", HOLD, filled.folder], capture_output=True, text=True, timeout=60)
        assert second.returncode == 1 and "OSError: another sweep is writing into" in second.stderr
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, filled.folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        with (
            pytest.raises(OSError, match=r"^another sweep is writing into .*; wait for it or stop it$"),
            filled.sole_writer(),
        ):
            raise AssertionError("two writers")
        first.kill()
        first.wait(60)
        with filled.sole_writer():
            assert len(filled.frame()) == len(RUNS)


# --- provenance ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_that_of_the_code_marked_where_it_differs(tmp_path, monkeypatch):
    def git(*words):
        settings = ("-c", "user.name=A", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        run = subprocess.run(["git", *settings, *words], cwd=tmp_path, capture_output=True, text=True, check=True)
        return run.stdout.strip()

    source = tmp_path / "src" / "decoupled"
    source.mkdir(parents=True)
    monkeypatch.setattr(store, "__file__", str(source / "store.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert store.commit() == "unknown"
    git("init", "-q")
    (source / "store.py").write_text("one = 1\n")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    head = git("rev-parse", "HEAD")
    assert store.commit() == head[:12]
    (tmp_path / "README.md").write_text("not code")
    assert store.commit() == head[:12]
    (source / "store.py").write_text("one = 2\n")
    assert store.commit() == head[:12] + "+"
    git("commit", "-q", "-a", "-m", "second")
    assert store.commit() == git("rev-parse", "HEAD")[:12] != head[:12]
    os.utime(source / "store.py", (1, 1))  # git would note that in its index, and a kill would leave the index locked
    before = (tmp_path / ".git/index").read_bytes()
    assert store.commit() == git("rev-parse", "HEAD")[:12] and (tmp_path / ".git/index").read_bytes() == before
    monkeypatch.setenv("PATH", str(tmp_path))  # no git here
    assert store.commit() == "unknown"


def test_provenance_says_where_when_and_by_what(monkeypatch):
    monkeypatch.setattr(store, "commit", lambda: "abc")
    made = store.provenance("A GPU", "2.13.0", "ff00")
    assert tuple(made) == store.PROVENANCE
    assert (made["device"], made["torch"], made["fingerprint"], made["commit"]) == ("A GPU", "2.13.0", "ff00", "abc")
    assert sys.version.startswith(made["python"])
    age = datetime.now(UTC) - datetime.fromisoformat(made["finished"])
    assert timedelta(0) <= age < timedelta(minutes=1)
