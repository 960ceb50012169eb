"""python -m decoupled: what is asked for is done, what is wrong ends in one line on stderr and a non-zero status."""

import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path

import made_up
import pytest

from decoupled import plan, store, sweep, workers
from decoupled.__main__ import main
from decoupled.store import Store


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty folder to work in, from which no address can be reached."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DATA_URL", raising=False)
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


SMOKE = plan.grid_runs("grids", "smoke", "cifar10")


def truncated_images(folder):
    """A folder of CIFAR-10 whose third file ends too early."""
    folder.mkdir()
    for i, name in enumerate([*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]):
        with open(folder / name, "wb") as file:
            file.truncate(30_730_000 if i != 2 else 30_729_999)  # 10,000 records of 1 + 3 x 32 x 32 bytes, all zero


def junk(path):
    path.write_bytes(b"PK\x03\x04 no results\n" * 40)


def results_of_another_version(path):
    frame = made_up.fill("made-for-export", SMOKE[:2]).frame()
    frame.loc[0, "alpha"] = 0.77
    store.export(frame, path)


# the command line, what is prepared in the empty folder, what the one line must say
ERRORS = {
    "unknown profile": (
        "run --profile nonsense", None, r"unknown profile 'nonsense'; known: auto, smoke, cpu, gpu, paper, t4",
    ),
    "unknown experiment": (
        "run --profile smoke --experiments grids fig7", None, r"unknown experiment 'fig7'; known: grids, schedules",
    ),
    "truncated images": (
        "run --profile smoke --data images", lambda: truncated_images(Path("images")),
        r"data_batch_3\.bin has 30729999 bytes, expected 30730000: it is truncated or not CIFAR-10; .*fetch",
    ),
    "no images in the folder": ("run --profile smoke --data .", None, r"data_batch_1\.bin is missing in \.; .*fetch"),
    "no folder of images": ("run --profile smoke --data 'no where'", None, r"data_batch_1\.bin is missing in no where"),
    "unwritable store": (
        "run --profile smoke --store file/results", lambda: Path("file").write_text(""),
        r"cannot write results into file/results: Not a directory",
    ),
    "a store that is a file": (
        "run --profile smoke --store file", lambda: Path("file").write_text(""),
        r"cannot write results into file: File exists",
    ),
    "a big profile without images": (
        "run --profile gpu", None, r"CIFAR-10 could not be downloaded from .*; put the official .* in data/raw",
    ),
    "import of junk": ("import junk.parquet", lambda: junk(Path("junk.parquet")), r"junk\.parquet is not a readable"),
    "import of nothing": ("import nothing.parquet", None, r"nothing\.parquet is not a readable Parquet file: "),
    "import of changed rows": (
        "import old.parquet", lambda: results_of_another_version(Path("old.parquet")),
        r"old\.parquet: row [0-9a-f]{16} does not have the key of its fields; it is from another version",
    ),
    "import into an unwritable store": (
        "import good.parquet --store file/x",
        lambda: (store.export(made_up.fill("a", SMOKE[:1]).frame(), Path("good.parquet")), junk(Path("file"))),
        r"cannot write results into file/x: Not a directory",
    ),
    "export of nothing": ("export --profile smoke", None, r"no results of profile smoke in data/runs"),
    "export to another format": (
        "export --profile smoke --store a --to table.csv", lambda: made_up.fill("a", SMOKE[:1]),
        r"results are exported to a \.parquet file, got table\.csv",
    ),
    "export below a file": (
        "export --profile smoke --store a --to file/b.parquet",
        lambda: (made_up.fill("a", SMOKE[:1]), Path("file").write_text("")),
        r".*(Not a directory|File exists).*file",
    ),
    "estimate of nothing known": ("estimate --profile big", None, r"unknown profile 'big'"),
    "estimate of an unknown experiment": ("estimate --profile smoke --experiments x", None, r"unknown experiment 'x'"),
    "parsl without a configuration": (
        "run --profile smoke --executor parsl", None, r"--executor parsl and --parsl-config FILE belong together",
    ),
    "a configuration without parsl": (
        "estimate --profile smoke --parsl-config a.py", None, r"--executor parsl and --parsl-config FILE belong",
    ),
    "parsl with workers of this machine": (
        "run --profile smoke --workers 2 --executor parsl --parsl-config a.py", None, r"--workers is for this machine",
    ),
    "verdicts of nothing known": ("verdicts --profile big", None, r"unknown profile 'big'"),
    "fetch without a network": ("fetch --to images", None, r"CIFAR-10 could not be downloaded from .*; put the "),
}  # fmt: skip


@pytest.mark.parametrize(("line", "prepare", "wanted"), ERRORS.values(), ids=ERRORS)
def test_an_error_is_one_line_and_status_1(line, prepare, wanted, capsys):
    if prepare:
        prepare()
    words = re.findall(r"'[^']*'|\S+", line)
    assert main([word.strip("'") for word in words]) == 1
    _, error = capsys.readouterr()
    assert error.count("\n") == 1 and error.endswith("\n") and "Traceback" not in error
    assert re.match(f"decoupled: .*{wanted}", error), error


@pytest.mark.parametrize("line", ["run --profile nonsense", "import junk.parquet"])
def test_a_process_ends_the_same_way(line, tmp_path):
    junk(tmp_path / "junk.parquet")
    done = subprocess.run(
        [sys.executable, "-m", "decoupled", *line.split()], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("decoupled: ") and done.stderr.count("\n") == 1


@pytest.mark.faults
@pytest.mark.parametrize(
    ("shell", "status", "wanted"),
    [
        ("> /dev/full", 1, "decoupled: [Errno 28] No space left on device\n"),
        ("| true", 1, "decoupled: [Errno 32] Broken pipe\n"),
        (">&-", 0, ""),
    ],
)
def test_output_that_goes_nowhere_is_one_line_too(shell, status, wanted):
    code = "import time; time.sleep(1); from decoupled.__main__ import main; raise SystemExit(main())"
    line = f'{sys.executable} -c "{code}" convert --from paper --to torch --alpha 1 --decay 1 {shell}'
    line = f"unset PYTHONUNBUFFERED; {line}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], stderr=subprocess.PIPE, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (status, wanted)


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("", "the following arguments are required: command"),
        ("train", "invalid choice: 'train'"),
        ("run --profil", "expected one argument"),
        ("run --colour red", "unrecognized arguments: --colour red"),
        ("run --workers 0", "argument --workers: must be at least 1, got 0"),
        ("run --workers 1000000", "argument --workers: must be at most 9999, got 1000000"),
        ("run --pack two", "argument --pack: "),
        ("run --time-limit soon", "argument --time-limit: must be a number of seconds, got soon"),
        ("run --time-limit nan", "argument --time-limit: must be a number of seconds, got nan"),
        ("run --time-limit=-1", "argument --time-limit: must be a number of seconds, got -1"),
        ("run --executor slurm", "argument --executor: invalid choice: 'slurm'"),
        ("import", "the following arguments are required: file"),
    ],
)
def test_a_wrong_command_line_is_status_2_with_the_reason_last(line, wanted, capsys):
    with pytest.raises(SystemExit) as end:
        main(line.split())
    assert end.value.code == 2
    _, error = capsys.readouterr()
    assert error.startswith("usage: python -m decoupled") and wanted in error.splitlines()[-1]


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    names = ["run", "status", "estimate", "verdicts", "compare", "fetch", "export", "import", "notebooks", "check"]
    for command in names:
        assert re.search(rf"^    {command}\b", text, re.MULTILINE), command


def test_status_counts_what_is_here_and_what_is_published(capsys):
    grid = made_up.fill("here", SMOKE[:7])
    published = made_up.fill("there", SMOKE)
    winners = plan.winner_runs("grids", "smoke", "cifar10", published.frame())
    made_up.fill("there", winners[:2])
    store.export(published.frame(), Path("data/results/smoke.parquet"))
    assert main(["status", "--store", "here"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    counts = {(profile, experiment): (here, there) for profile, experiment, here, there in rows}
    assert set(counts) == {(profile, experiment) for profile in plan.PROFILES for experiment in plan.EXPERIMENTS}
    # the plan grows by the chosen cells when the grid is done
    assert counts["smoke", "grids"] == (f"7/{len(SMOKE)}", f"{len(SMOKE) + 2}/{len(SMOKE) + len(winners)}")
    assert counts["paper", "grids"] == ("0/462", "0/462")
    assert len(grid.keys()) == 7


def test_status_of_a_damaged_result_says_so_and_does_not_count_it(capsys):
    here = made_up.fill("here", SMOKE[:3])
    (here.folder / f"{SMOKE[0].key()}.json").write_text("{")
    assert main(["status", "--store", "here"]) == 0
    out = capsys.readouterr().out
    assert "counts as missing" in out and re.search(rf"^smoke +grids +2/{len(SMOKE)} ", out, re.MULTILINE)


def test_export_and_import_carry_results_to_another_machine(capsys):
    here = made_up.fill("here", SMOKE[:5] + plan.grid_runs("grids", "cpu", "cifar10")[:3])
    assert main(["export", "--profile", "smoke", "--store", "here", "--to", "out/smoke.parquet"]) == 0
    assert capsys.readouterr().out.splitlines() == ["out/smoke.parquet: 5 runs", "out/smoke.csv: 5 runs"]
    assert main(["import", "out/smoke.parquet", "--store", "there"]) == 0
    assert main(["import", "out/smoke.parquet", "--store", "there"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["out/smoke.parquet: 5 runs, 5 new", "out/smoke.parquet: 5 runs, 0 new"]
    assert Store("there").keys() == {run.key() for run in SMOKE[:5]}
    for run in SMOKE[:5]:
        assert Store("there").read(run.key()) == here.read(run.key())
    assert main(["export", "--profile", "smoke", "--store", "there"]) == 0
    assert sorted(os.listdir("data/results")) == ["smoke.csv", "smoke.parquet"]


def test_estimate_measures_this_machine(capsys):
    made_up.fill("here", SMOKE[:4])
    assert main(["estimate", "--profile", "smoke", "--experiments", "grids", "--store", "here"]) == 0
    _, grids, total, device = capsys.readouterr().out.splitlines()
    # 4 algorithms, each with and without decay, one fresh seed
    missing = len(SMOKE) - 4 + 8
    assert grids.split()[:4] == ["grids", f"4/{len(SMOKE)}", str(missing), str(2 * missing)]
    assert float(total.split()[4]) > 1e9 and float(total.split()[5]) < 1
    assert re.match(r"at most, with \d+ worker\(s\) on .+; in the total on disk, checkpoints while it runs$", device)


def test_a_dry_run_lists_what_is_missing_and_trains_nothing(capsys):
    made_up_images = plan.grid_runs("grids", "smoke", "generated")
    made_up.fill("here", made_up_images[:6])
    assert main(["run", "--profile", "smoke", "--experiments", "grids", "--store", "here", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "GENERATED images; the results will NOT be about CIFAR-10" in out
    assert f"grids, grid: 6 of {len(made_up_images)} done; missing, in order:" in out
    assert out.index("at most, with ") < out.index("missing, in order")  # the estimate comes first
    listed = re.findall(r"^  ([0-9a-f]{16}) ", out, re.MULTILINE)
    assert listed == [run.key() for run in made_up_images[6:]]
    shutil.rmtree("here")
    assert main(["run", "--profile", "smoke", "--experiments", "grids", "--store", "here", "--dry-run"]) == 0
    assert not os.path.exists("here")


@pytest.fixture
def no_workers(monkeypatch):
    """In the place of workers: the speed of every size is what is put into the list that this returns."""
    seconds_per_image = [1e-9]

    class Nobody:
        count, died = 1, ()

        def __init__(self, slots):
            pass

        def submit(self, function, run, device):
            assert function is workers.measure
            future: Future = Future()
            future.set_result(workers.Measured(seconds_per_image[0], "A GPU"))
            return future

        def shutdown(self, now=False):
            pass

    monkeypatch.setattr(workers, "Local", Nobody)
    return seconds_per_image


def test_a_failed_run_is_status_1_and_the_rest_of_the_plan_goes_on(capsys, monkeypatch, no_workers):
    runs = plan.grid_runs("grids", "smoke", "generated")
    asked = []

    def carry_out(sweeper, todo):
        asked.append(list(todo))
        made_up.fill(sweeper.store.folder, [run for run in todo if run != runs[0]])
        failed = {run.key(): "out of memory" for run in todo if run == runs[0]}
        return sweep.Report(trained=len(todo) - len(failed), failed=failed)

    monkeypatch.setattr(sweep.Sweep, "carry_out", carry_out)
    assert main(["run", "--profile", "smoke", "--experiments", "grids", "--store", "here"]) == 1
    out, error = capsys.readouterr()
    assert error == f"decoupled: 1 run(s) failed; the first, {runs[0].key()}: out of memory\n"
    assert "1 failed" in out
    grid = Store("here").frame()
    assert asked == [runs, plan.winner_runs("grids", "smoke", "generated", grid[grid["seed"] == 0])]


@pytest.mark.parametrize(
    ("options", "started"),
    [
        ("", False),
        ("--time-limit 86400", False),
        ("--time-limit 86399", True),
        ("--time-limit 0", True),
        ("--yes", True),
        ("--dry-run", False),
    ],
)
def test_what_takes_more_than_a_day_must_be_asked_for(capsys, monkeypatch, no_workers, options, started):
    images = sweep.work(plan.grid_runs("grids", "smoke", "generated"))
    no_workers[0] = 24.5 * 3600 / images  # and the chosen cells come on top
    asked = []

    def carry_out(_sweeper, runs):
        asked.append(runs)
        return sweep.Report()

    monkeypatch.setattr(sweep.Sweep, "carry_out", carry_out)
    status = main(["run", "--profile", "smoke", "--experiments", "grids", "--store", "here", *options.split()])
    out, error = capsys.readouterr()
    assert "total" in out and bool(asked) == started
    assert status == (0 if started or options == "--dry-run" else 1)
    if status:
        assert re.fullmatch(r"decoupled: this would take about \d\d h: --yes goes on, --time-limit with .*\n", error)


def test_a_run_ends_with_a_table_of_what_is_done_and_missing(capsys, monkeypatch, no_workers):
    runs = plan.grid_runs("grids", "smoke", "generated")

    def carry_out(sweeper, todo):
        made_up.fill(sweeper.store.folder, runs[:5])
        return sweep.Report(trained=5, left=len(todo) - 5)

    monkeypatch.setattr(sweep.Sweep, "carry_out", carry_out)
    assert main(["run", "--profile", "smoke", "--experiments", "grids", "--store", "here", "--time-limit", "99"]) == 0
    before, after = re.findall(r"^grids +(\S+) ", capsys.readouterr().out, re.MULTILINE)
    assert (before, after) == (f"0/{len(runs)}", f"5/{len(runs)}")


def test_nothing_but_the_executor_parsl_loads_parsl():
    line = ["run", "--profile", "smoke", "--experiments", "grids", "--time-limit", "0"]
    code = f"import sys; from decoupled.__main__ import main; main({line}); sys.exit('parsl' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_no_time_is_no_work_but_says_what_is_left(capsys):
    assert main(["run", "--profile", "smoke", "--experiments", "grids", "--store", "here", "--time-limit", "0"]) == 0
    out = capsys.readouterr().out
    assert f"0 trained, 0 failed, {len(SMOKE)} left for lack of time" in out and "wait for the grid" in out
    assert Store("here").keys() == set()


# --- convert ----------------------------------------------------------------------------------------------------------


def test_convert_gives_the_number_and_what_else_must_be_set(capsys):
    line = "convert --from paper --to torch --alpha 0.001 --decay 0.00025"
    assert main(line.split()) == 0
    number, *notes = capsys.readouterr().out.splitlines()
    assert number == "0.25" and any("do not schedule it again" in note for note in notes)
    assert main([*line.split(), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["decay"], found["exact"]) == (0.25, True) and found["notes"] == notes


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ("--to caffe", "unknown convention 'caffe'; known: paper, "),
        ("--to normalized --epochs 100", "normalized needs .*; missing: batch_size, train_size$"),
        ("--decay -1", "decay must be a finite number >= 0, got -1.0$"),
        ("--alpha 0", "alpha must be a finite number > 0, got 0.0$"),
        ("--to l2", "l2 has no equivalent for adamw"),
    ],
)
def test_what_cannot_be_converted_is_one_line_and_status_1(capsys, changes, error):
    line = f"convert --from paper --to torch --alpha 0.001 --decay 0.01 {changes}"  # the last of two options counts
    assert main(line.split()) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and re.match(f"decoupled: {error}", err.rstrip("\n"))
