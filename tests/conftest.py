"""What all tests share: one thread, fixed seeds, float64 on request, and no GPU test without a GPU."""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]

torch.set_num_threads(1)
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
# other inputs every time, and many of them: HYPOTHESIS_PROFILE=long or --hypothesis-profile=long
hypothesis.settings.register_profile("long", max_examples=2000, deadline=None, database=None, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


def pytest_configure(config):
    config.addinivalue_line("markers", "long(group): takes long; begins early, alone or after the others of its group")
    config.option.loadscopereorder = False  # groups begin in the order of pytest_collection_modifyitems


def pytest_ignore_collect(collection_path, config):
    """With `-m faults`, or one other mark, files that do not have it are not imported: most of the time of a start."""
    mark = config.option.markexpr
    if collection_path.suffix == ".py" and mark.isidentifier():
        return f"mark.{mark}" not in collection_path.read_text() or None
    return None


def group_of(item):
    """Tests of a group run in one process: those that need the site, so that it is built once, and those of a file."""
    if "site" in item.fixturenames:
        return "site"
    long = item.get_closest_marker("long")
    return long.kwargs.get("group") if long else item.path.stem


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """First what needs the site, then what takes long: several workers must end at the same time."""
    items.sort(key=lambda item: ("site" not in item.fixturenames, not item.get_closest_marker("long")))
    for item in items:
        if (group := group_of(item)) and getattr(config.option, "loadgroup", False):
            # pytest-xdist 3.8 does this for its own mark, where pytest 9.2 does not see it (pytest-xdist issue 1386)
            item._id = item.id.parse(f"{item.nodeid}@{group}")


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def seeds():
    """The same global random state at the start of every test."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def float64():
    """float64 as torch's default dtype for the length of one test."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project in which `smoke` was trained and the book built strictly; its _build/html."""
    copy = tmp_path_factory.mktemp("smoke") / "project"
    ignore = shutil.ignore_patterns(
        ".git", ".venv", "_build", "build", "raw", "runs", "generated", ".*_cache", ".stage"
    )
    shutil.copytree(ROOT, copy, ignore=lambda folder, names: ignore(folder, names) | (
        {"notebooks"} & set(names) if Path(folder).name == "book" else set()
    ))  # fmt: skip
    bin_folder = str(Path(sys.executable).parent)
    environment = os.environ | {"PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
    data = ["--data", str(ROOT / "data/raw")] if (ROOT / "data/raw/cifar-10-batches-bin").is_dir() else []
    module = [sys.executable, "-m", "decoupled"]
    build = "jupyter-book build book --config _config.yml --path-output . --all -W --keep-going -n"
    for command in (
        [*module, "run", "--profile", "smoke", *data],
        [*module, "notebooks"],
        build.split(),
        [*module, "finish", "_build/html"],
        [*module, "check", "_build/html"],
    ):
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return copy / "_build/html"
