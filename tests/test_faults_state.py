"""What is said of the state of things: done, running, failed and why, damaged, stale; and what no figure may mix."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import made_up
import pytest
from made_up_plans import into, study
from test_sweep import Crew, keys

from decoupled import plan, report, session, store, sweep, workers
from decoupled.__main__ import main
from decoupled.store import Store
from decoupled.sweep import Sweep

pytestmark = pytest.mark.faults
ROOT = Path(__file__).parents[1]
SMOKE = plan.grid_runs("fixed_lr", "smoke", "cifar10")
OTHER = "ffeeddccbbaa9988"  # a fingerprint of images


def status(folder, capsys):
    """The lines of `status` below its table."""
    capsys.readouterr()
    assert main(["status", "--store", str(folder)]) == 0
    out, error = capsys.readouterr()
    assert error == ""
    rows = 1 + len(plan.PROFILES) * len(plan.EXPERIMENTS)
    below = [line for line in out.splitlines() if "counts as missing" not in line]
    assert below[0].split() == ["profile", "experiment", "here", "published"]
    return below[rows:]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty store, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    folder = Store("here")
    folder.open_for_writing()
    return folder


# --- status -----------------------------------------------------------------------------------------------------------


def test_nothing_is_said_where_all_is_well(here, capsys):
    made_up.fill("here", SMOKE[:2])
    assert status("here", capsys) == []


def test_what_runs_is_told_while_it_runs(here, capsys):
    with here.sole_writer():
        sweep.note_running(here, SMOKE[:2])
        assert status("here", capsys) == [f"running: 2 run(s), {', '.join(sorted(keys(SMOKE[:2])))}"]
    assert status("here", capsys) == []


def test_a_sweep_tells_exactly_what_it_trains(here):
    class Watched(Crew):
        def train(self, future, pack, *rest):
            seen.append((sweep.running(here), keys(pack)))
            super().train(future, pack, *rest)

    seen: list[tuple[set[str], set[str]]] = []
    Sweep(here, Watched(count=1), device=None, data_folder=None, pack_size=2).carry_out(SMOKE)
    assert len(seen) > 1 and all(told == trained for told, trained in seen)
    assert sweep.running(here) == set()


HOLD = """
import sys
from decoupled import plan, sweep
from decoupled.store import Store
store = Store(sys.argv[1])
with store.sole_writer():
    sweep.note_running(store, plan.grid_runs("fixed_lr", "smoke", "cifar10")[:1])
    print("held", flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_sweep_trained_is_not_told_as_running(here, capsys):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, here.folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        assert status("here", capsys) == [f"running: 1 run(s), {SMOKE[0].key()}"]
        os.kill(process.pid, signal.SIGKILL)
        process.wait(60)
    assert status("here", capsys) == [] and SMOKE[0].key() in (here.folder / ".lock").read_text()


def test_why_runs_failed_is_told_until_they_are_trained(here, capsys):
    options: dict = {"device": None, "data_folder": None, "say": lambda line: None}
    Sweep(here, Crew(fails=keys(SMOKE[:2])), **options).carry_out(SMOKE)
    assert status("here", capsys) == [f"failed, no such images: 2 run(s), {', '.join(sorted(keys(SMOKE[:2])))}"]
    Sweep(here, Crew(deadly={SMOKE[0].key(): 99}), **options).carry_out(SMOKE)
    assert status("here", capsys) == [f"failed, its worker died 3 times: 1 run(s), {SMOKE[0].key()}"]
    with open(here.folder / "failed.txt", "a") as file:
        file.write('["0123456789abcdef", "cut o')  # by a crash
    assert status("here", capsys) == [f"failed, its worker died 3 times: 1 run(s), {SMOKE[0].key()}"]
    Sweep(here, Crew(), **options).carry_out(SMOKE)
    assert status("here", capsys) == [] and here.keys() == keys(SMOKE)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[" * 99_999, b"3\n[1]\n[[], {}]\n", b'{"a": 1, "b": 2}\n'])
def test_a_damaged_list_of_failures_harms_nothing(here, content):
    (here.folder / "failed.txt").write_bytes(content)
    assert set(sweep.failed(here)) <= {"[]", "a"}


def test_stale_and_damaged_results_are_told_apart(here, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(store, "SEMANTICS", store.SEMANTICS - 1)  # as an older version of this code wrote it
        made_up.fill("here", SMOKE[:1])
    made_up.fill("here", SMOKE[1:3])
    (here.folder / f"{SMOKE[1].key()}.json").write_bytes(b"")
    wanted = {
        f"stale, in here/quarantine: 1 run(s), {SMOKE[0].key()}",
        f"damaged, in here/quarantine: 1 run(s), {SMOKE[1].key()}",
    }
    assert set(status("here", capsys)) == wanted and here.keys() == keys(SMOKE[2:3])
    assert set(status("here", capsys)) == wanted  # not only the first time


# --- what no figure mixes ---------------------------------------------------------------------------------------------


def mixed(experiment, others):
    """A finished experiment, of which the first few runs were made from other images."""
    frame = study("smoke", experiment)
    frame.loc[: others - 1, "fingerprint"] = OTHER
    return frame, sorted(frame["key"][:others])


def test_runs_made_from_other_images_are_left_out_of_a_page_and_named(here, capsys):
    frame, others = mixed("restarts", 2)
    into("here", frame)
    results = store.open_results("smoke", "here")
    said = capsys.readouterr().out
    assert said.startswith(f"left out: 2 of {len(frame)} runs, made from other cifar10 images ({OTHER}, not ")
    assert said.count("\n") == 1 and all(key in said for key in others)
    assert set(results.local["key"]) == set(frame["key"]) - set(others) and results.local["fingerprint"].nunique() == 1
    caption = report.made(results.local, "smoke", "restarts")
    assert f"{len(frame) - 2} of {len(frame)} planned runs, INCOMPLETE (2 missing), " in caption


def test_published_runs_made_from_other_images_are_left_out_and_named(here, capsys):
    frame, others = mixed("restarts", 1)
    store.export(frame, Path("data/results/smoke.parquet"))
    published = store.published(Path("data/results"))["smoke"]
    assert set(published["key"]) == set(frame["key"]) - set(others)
    assert others[0] in capsys.readouterr().out


def test_one_fingerprint_per_data_set_is_kept_that_of_most_runs():
    frame = store.as_frame(
        [
            {"key": str(i), "dataset": name, "fingerprint": mark}
            for i, (name, mark) in enumerate(
                [("cifar10", "a"), ("cifar10", "b"), ("cifar10", "b"), ("generated", "a"), ("generated", "c")]
            )
        ]
    )
    said: list[str] = []
    assert list(plan.same_images(frame, said.append)["key"]) == ["1", "2", "3"]
    assert said == [
        "left out: 1 of 3 runs, made from other cifar10 images (a, not b): 0",
        "left out: 1 of 2 runs, made from other generated images (c, not a): 4",
    ]
    assert plan.same_images(frame.iloc[:0], said.append).empty and len(said) == 2


def test_a_notebook_says_what_it_leaves_out(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    frame, others = mixed("tricks", 1)
    into(tmp_path, frame)
    (tmp_path / f"{frame['key'].iloc[-1]}.json").write_text("{}")
    for _ in range(2):  # the damaged one is in quarantine the second time, and is named all the same
        session.begin(["tricks"], "smoke", str(tmp_path), False)
        out = capsys.readouterr().out
        assert f"left out: 1 of {len(frame) - 1} runs, made from other cifar10 images" in out and others[0] in out
        assert f"left out: 1 damaged run(s), now in {tmp_path}/quarantine: {frame['key'].iloc[-1]}" in out
        assert f"tricks {len(frame) - 2} of {len(frame)}" in out


def test_verdicts_leave_them_out_too_and_stay_json(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    frame, others = mixed("fixed_lr", 1)
    into(tmp_path, frame)
    assert main(["verdicts", "--profile", "smoke", "--store", str(tmp_path), "--json"]) == 0
    out, error = capsys.readouterr()
    assert json.loads(out)["profile"] == "smoke"
    assert error.count("\n") == 1 and others[0] in error


def test_a_sweep_says_that_stored_runs_have_other_images(here, monkeypatch, capsys):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens there: images are generated
    monkeypatch.setattr(workers, "Local", lambda slots: Crew())
    made_up.fill("here", plan.grid_runs("fixed_lr", "smoke", "generated")[:3])
    line = ["run", "--profile", "smoke", "--experiments", "fixed_lr", "--store", "here", "--dry-run"]
    assert main(line) == 0
    assert "\n3 stored run(s) have other images: move them out of here to train them again\n" in capsys.readouterr().out


def test_results_of_two_versions_of_the_code_never_meet(here, monkeypatch, capsys):
    """Semantics are part of a key, and of every file: other ones are put aside on reading, or refused on import."""
    older = dataclasses.replace(SMOKE[0])
    now = older.key()
    made_up.fill("here", SMOKE[1:])
    with monkeypatch.context() as patch:
        for module in ("decoupled.runs.SEMANTICS", "decoupled.store.SEMANTICS"):
            patch.setattr(module, store.SEMANTICS - 1)
        patch.setitem(store.TABLE, "semantics", store.TABLE["semantics"] - 1)
        assert older.key() != now
        made_up.fill("here", [older])
        path, _ = store.export(made_up.fill("old", SMOKE).frame(), Path("old.parquet"))
    results = store.open_results("smoke", "here")
    assert set(results.local["key"]) == keys(SMOKE[1:])
    assert "left out: 1 stale run(s), now in here/quarantine: " in capsys.readouterr().out
    assert main(["import", str(path), "--store", "here"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "old.parquet has semantics 0, must be 1: another version" in error


# --- incomplete grids -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("experiment", ["grids", "restarts"])
def test_a_figure_of_an_incomplete_plan_says_so_and_one_of_a_complete_plan_does_not(experiment):
    frame = study("smoke", experiment)
    planned = plan.grid_runs(experiment, "smoke", "cifar10")
    assert "INCOMPLETE" not in report.made(frame, "smoke", experiment)
    part = frame[frame["key"] != planned[1].key()].reset_index(drop=True)
    for text in (
        report.made(part, "smoke", experiment),
        report.own_figure(store.Results("smoke", part, "smoke", part), experiment, "name", "Title"),
        report.values(part, "smoke", report.load_paper(ROOT / "data/paper/paper_figures.csv"))["made"][experiment],
    ):
        assert f"{len(planned) - 1} of {len(planned)} planned runs" in text and ", INCOMPLETE (1 missing), " in text
