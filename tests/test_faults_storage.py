"""Disks that are full or read-only, results that are damaged, altered, foreign, doubled, or from another version."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import made_up
import numpy as np
import odd_workers
import pandas as pd
import pytest
from plain_loop import make_images

from decoupled import data, plan, store, sweep
from decoupled.__main__ import main
from decoupled.runs import RunConfig

pytestmark = pytest.mark.faults
ROOT = Path(__file__).parents[1]
RUNS = [RunConfig("adamw", alpha, 1e-3, epochs=4, evaluations=2, seed=seed) for seed in range(3) for alpha in (0.01, 1)]


def rows_of(frame):
    """Rows as text in which equal bits are equal texts, and nan equals nan."""
    return [json.dumps(row, default=lambda value: value.item()) for row in frame.to_dict("records")]


# --- disks ------------------------------------------------------------------------------------------------------------

SMALL = "mount -t tmpfs -o size=160k tmpfs 'Läufe auf λ'"  # 40 pages of 4 KB; a result takes one


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """Sweeps on a small disk that gets full, and commands when it is read-only: status, stdout and stderr of each."""
    mount = ["unshare", "-rm", "mount", "-t", "tmpfs", "x", "/mnt"]
    if shutil.which("unshare") is None or subprocess.run(mount, check=False).returncode:
        pytest.skip("needs a mount of its own (unshare -rm), which this machine does not allow")
    folder = tmp_path_factory.mktemp("disk")
    (folder / "Läufe auf λ").mkdir()
    python, where = f"'{sys.executable}'", "'Läufe auf λ'"
    steps = {
        "full": f"{python} '{ROOT / 'tests/forked.py'}' fill_disk {where}",
        "read-only": f'f=$(ls */*.json | head -n 1); echo x >> "$f"; mount -o remount,ro {where}; '
        f"{python} -m decoupled run --profile smoke --store {where}",
        "status": f"{python} -m decoupled status --store {where}",
    }
    script = [SMALL, *(f"( {line} ) > {i}.out 2> {i}.err; echo $? > {i}.rc" for i, line in enumerate(steps.values()))]
    subprocess.run(["unshare", "-rm", "bash", "-c", "\n".join(script)], cwd=folder, check=True)
    ends = ("rc", "out", "err")
    return {name: [(folder / f"{i}.{end}").read_text().strip() for end in ends] for i, name in enumerate(steps)}


@pytest.mark.long(group="disk")
def test_a_full_disk_ends_the_sweep_in_one_line_and_keeps_what_is_finished(disk):
    status, out, error = disk["full"]
    assert (status, error) == ("0", ""), error
    found = json.loads(out)  # it checks, too, that what was stored is whole, and not trained again
    assert found["full"] == found["still full"] == "cannot write results into Läufe auf λ: No space left on device"
    assert found["left, full"] == found["left, still full"] == []  # half a file would take room that others need
    assert 0 < found["kept"] == 60 - found["trained"] < 60 == found["stored"]


@pytest.mark.long(group="disk")
def test_a_read_only_store_is_one_line_for_a_sweep_and_can_be_read(disk):
    status, _, error = disk["read-only"]
    assert status == "1" and error == "decoupled: cannot write results into Läufe auf λ: Read-only file system"
    status, out, error = disk["status"]
    assert status == "0" and error == ""
    assert "it cannot be moved to Läufe auf λ/quarantine (Read-only file system), the run counts as missing" in out


# --- results in the store ---------------------------------------------------------------------------------------------

DAMAGE = {
    "truncated": lambda good: good[: len(good) // 3],
    "a flipped bit": lambda good: good[:-99] + bytes([good[-99] ^ 4]) + good[-98:],
    "empty": lambda good: b"",
    "foreign": lambda good: b'{"checksum": "of another program", "results": []}\n',
}


def test_a_damaged_result_is_put_aside_with_a_message_and_trained_again(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens there: images are generated
    monkeypatch.setattr(data, "generated", make_images)
    monkeypatch.setattr(sweep, "train", odd_workers.few)
    monkeypatch.setattr(sweep, "measure", odd_workers.briefly)
    grid = plan.grid_runs("grids", "smoke", "generated")
    here = made_up.fill("a store", grid)
    made_up.fill("a store", plan.winner_runs("grids", "smoke", "generated", here.frame()))
    good = {path.stem: path.read_bytes() for path in here.folder.glob("*.json")}
    bad = dict(zip([run.key() for run in grid if run.algorithm == "adam"], DAMAGE, strict=False))
    assert len(bad) == len(DAMAGE)
    for key, name in bad.items():
        (here.folder / f"{key}.json").write_bytes(DAMAGE[name](good[key]))
    line = ["run", "--profile", "smoke", "--experiments", "grids", "--store", "a store", "--workers", "1"]
    assert main(line) == 0
    out, error = capsys.readouterr()
    assert error == ""
    for key in bad:
        assert out.count(f"a store/{key}.json is not a whole result") == 1
        assert (here.folder / "quarantine" / f"{key}.json").exists()
        assert here.read(key)["device"] != made_up.PROVENANCE["device"]  # trained here, now
    now = {path.stem: path.read_bytes() for path in here.folder.glob("*.json")}
    assert {key: now[key] for key in good if key not in bad} == {key: good[key] for key in good if key not in bad}
    assert main(["status", "--store", "a store"]) == 0
    assert f"damaged, in a store/quarantine: {len(bad)} run(s), {', '.join(sorted(bad))}" in capsys.readouterr().out


def test_ten_thousand_results_are_opened_once_each(tmp_path, monkeypatch):
    many = [RunConfig("adamw", 1e-3 * (1 + i % 97), 1e-3, epochs=1, seed=i) for i in range(10_000)]
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)  # a minute of waiting for nothing
        here = made_up.fill(tmp_path, many)
    opened: list[str] = []
    read = Path.read_bytes

    def counted(path):
        opened.append(path.stem)
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", counted)
    frame = here.frame(curves=False)
    assert len(frame) == len(set(opened)) == len(opened) == 10_000
    opened.clear()
    assert here.keys() == {run.key() for run in many} == set(frame["key"])
    assert sweep.failed(here) == {} and sweep.running(here) == set() and not opened


# --- exported results -------------------------------------------------------------------------------------------------


@pytest.fixture
def exported(tmp_path):
    """A Parquet file of RUNS (one has diverged), and what `edit` writes into it behind the package's back."""
    here = made_up.fill(tmp_path / "store", RUNS[1:])
    here.write(RUNS[0], made_up.diverged(RUNS[0], step=7), made_up.PROVENANCE)
    path, _ = store.export(here.frame(), tmp_path / "smoke.parquet")

    def edit(change):
        frame = pd.read_parquet(path)
        changed = change(frame)
        (frame if changed is None else changed).to_parquet(path, index=False)
        return path

    return edit


def put(name, row, value):
    def change(frame):
        frame[name] = [value if i == row else old for i, old in enumerate(frame[name])]

    return change


def refused(path):
    """What `load` and the command `import` say of a file, in one line."""
    with pytest.raises(ValueError) as error:
        store.load(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


def test_a_file_that_was_only_written_again_is_accepted(exported):
    assert len(store.load(exported(lambda frame: None))) == len(RUNS)


@pytest.mark.parametrize("name", [*store.NUMBERS, *store.CURVES, *store.PROVENANCE])
def test_an_altered_number_is_found(exported, name):
    def alter(frame):
        value = frame[name].iloc[2]
        if name in store.CURVES:
            other = [*value[:-1], value[-1] * 1.5] if len(value) else ["AAAA"]
            value = other if name == "probabilities" else np.asarray(other)
        else:
            value = value + "x" if isinstance(value, str) else value + type(value)(1)
        put(name, 2, value)(frame)

    assert "does not match its checksum; the file was changed or damaged" in refused(exported(alter))


def test_a_number_put_where_a_run_diverged_is_found(exported):
    def alter(frame):
        frame.loc[frame["diverged_step"] >= 0, "test_error"] = 12.5

    assert "does not match its checksum" in refused(exported(alter))


def test_the_smallest_change_of_a_number_is_found(exported):
    def alter(frame):
        frame.loc[3, "test_error"] = np.nextafter(frame.loc[3, "test_error"], 0)

    assert "does not match its checksum" in refused(exported(alter))


OTHER_FILES = {
    "a newer format": (put("format", 0, 3), "has format 3, 2, must be 2: another version of this code wrote it"),
    "older semantics": (lambda f: f.assign(semantics=0), f"has semantics 0, must be {store.SEMANTICS}: another"),
    "no checksums": (
        lambda f: f.drop(columns=["format", "semantics", "checksum"]), "has format none, must be 2: another version",
    ),
    "no column of checksums": (lambda f: f.drop(columns="checksum"), "missing or unknown columns: checksum"),
    "unknown columns": (lambda f: f.assign(mood="good", colour=1), "has missing or unknown columns: colour, mood"),
    "a row less": (lambda f: f.iloc[1:], "does not match its checksum"),
    "a row twice": (lambda f: pd.concat([f, f.iloc[:1]]), "does not match its checksum"),
    "numbers as text": (lambda f: f.assign(test_error=f["test_error"].astype(str)), "does not match its checksum"),
    "another key": (put("key", 1, "0" * 16), "does not match its checksum"),
    "the checksum of another row": (lambda f: f.assign(checksum=f["checksum"].iloc[::-1].values), "does not match"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "wanted"), OTHER_FILES.values(), ids=OTHER_FILES)
def test_a_file_of_another_kind_is_refused(exported, change, wanted):
    assert wanted in refused(exported(change))


def test_a_key_of_other_fields_is_refused_where_the_checksum_is_right(tmp_path):
    frame = made_up.fill(tmp_path / "store", RUNS).frame()
    frame.loc[2, "seed"] = 77
    path, _ = store.export(frame, tmp_path / "changed.parquet")
    assert "does not have the key of its fields" in refused(path)


def test_a_run_that_stands_twice_is_refused_where_the_checksum_is_right(tmp_path):
    frame = made_up.fill(tmp_path / "store", RUNS).frame()
    path, _ = store.export(pd.concat([frame, frame.iloc[:1]]), tmp_path / "twice.parquet")
    assert f"row {frame['key'].iloc[0]} stands there twice" in refused(path)


def test_no_flipped_bit_of_a_file_is_overlooked(exported):
    path = exported(lambda frame: None)
    good, want = path.read_bytes(), rows_of(store.load(path))
    refusals = 0
    for position in range(4, len(good), len(good) // 400):
        flipped = bytearray(good)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        try:
            assert rows_of(store.load(path)) == want, f"bit {position % 8} of byte {position}"
        except ValueError as error:
            assert "\n" not in str(error)
            refusals += 1
    assert refusals > 100  # the others lie in parts that are not read, such as statistics


def test_damaged_published_results_stop_the_book_and_every_command_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    frame = made_up.fill("store", RUNS).frame()
    path, _ = store.export(frame, Path("data/results/cpu.parquet"))
    altered = pd.read_parquet(path)
    altered["test_error"] *= 0.5
    altered.to_parquet(path)
    with pytest.raises(ValueError, match="does not match its checksum"):
        store.open_results("cpu", "store")
    for line in ("status", "verdicts --profile auto", "compare --profile cpu", f"import {path}", "notebooks"):
        assert main([*line.split(), "--store", "empty"]) == 1
        out, error = capsys.readouterr()
        assert error.count("\n") == 1 and "does not match its checksum; the file was changed" in error, (line, out)
    assert not list(Path("empty").glob("*.json"))


def test_the_committed_results_are_whole():
    for path in (ROOT / "data/results").glob("*.parquet"):
        frame, table = store.load(path), pd.read_csv(path.with_suffix(".csv"))
        assert len(frame) == len(table) > 0
        for name in ("test_error", "val_error", "train_loss", "diverged_step"):  # the CSV beside it shows the same
            assert np.array_equal(frame[name].to_numpy(), table[name].to_numpy(), equal_nan=True)
