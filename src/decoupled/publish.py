"""From stored results to what the book is built from: values for the prose, notebooks under a strict gate.

papermill alone lets three kinds of rot through: an unknown parameter is a log line, a notebook without a `parameters`
tag overwrites what it is given, and an executed notebook that holds an error still builds. Here each is an error.
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from decoupled import explore, report, store, verdicts

NOTEBOOKS = Path("notebooks")
EXECUTED = Path("book/notebooks")
GENERATED = Path("book/generated")
VENDORED = Path("book/_vendor")
FAILED = Path("build/failed")
CELL_TIMEOUT_S = 600
LESSONS = ("why_regularize", "penalty", "sgd_equivalence", "where_it_breaks", "algorithms", "learning_rate", "systems")


class NotebookError(RuntimeError):
    """One notebook that must not be published; the text is one line."""


def check_parameters(path: Path, parameters: Mapping[str, Any]) -> None:
    """NotebookError unless `path` is for kernel python3, has one cell tagged `parameters`, and takes what is given."""
    import nbformat
    import papermill

    notebook = nbformat.read(path, 4)
    if (kernel := notebook.metadata.get("kernelspec", {}).get("name")) != "python3":
        raise NotebookError(f"{path}: its kernel is {kernel!r}, must be python3")
    cells = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    if len(cells) != 1:
        raise NotebookError(f"{path}: needs exactly one cell tagged `parameters`, has {len(cells)}")
    try:
        known = papermill.inspect_notebook(str(path))
    except ValueError as err:  # a kernelspec that papermill cannot make sense of
        raise NotebookError(f"{path}: {err}") from None
    for name, value in parameters.items():
        if name not in known:
            raise NotebookError(f"{path}: unknown parameter {name!r}; known: {', '.join(known)}")
        default = _literal(known[name]["default"])
        if type(default) is not type(value):
            raise NotebookError(
                f"{path}: parameter {name} must be {type(default).__name__} like its default {default!r}, got {value!r}"
            )


def _literal(text: str) -> Any:
    import ast

    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def execute(path: Path, parameters: Mapping[str, Any], to: Path) -> None:
    """Run one notebook through papermill in the current folder and write a clean copy to `to`.

    Raises NotebookError for an unknown or mistyped parameter, a missing tag, another kernel than python3, an error, or
    anything on stderr; the half-executed copy is then in build/failed/. `to` changes only if its content does.
    """
    import nbformat
    import papermill
    from traitlets.config import Config

    check_parameters(path, parameters)
    part = to.with_name(f".{to.name}.part.ipynb")
    part.parent.mkdir(parents=True, exist_ok=True)
    # ipc: no TCP ports, and no start-up notice on stderr; not to be had on Windows. Left alone, all kernels that are
    # started in one folder would share its sockets.
    sockets = tempfile.mkdtemp()
    manager = {"transport": "ipc", "ip": f"{sockets}/kernel"}
    quiet = {} if sys.platform == "win32" else {"config": Config({"KernelManager": manager})}
    try:
        papermill.execute_notebook(
            str(path), str(part), dict(parameters), kernel_name="python3", progress_bar=False, log_output=False,
            execution_timeout=CELL_TIMEOUT_S, start_timeout=120, **quiet,
        )  # fmt: skip
        notebook = nbformat.read(part, 4)
        problem = clean(notebook)
    except papermill.PapermillExecutionError as err:
        problem = f"cell {err.exec_count} raised {err.ename}: {err.evalue}"
    except Exception as err:  # a kernel that dies or hangs ends in one of many types
        problem = f"{type(err).__name__}: {(str(err).splitlines() or [''])[0]}"
    finally:
        shutil.rmtree(sockets, ignore_errors=True)
    if problem:
        FAILED.mkdir(parents=True, exist_ok=True)
        if part.exists():
            shutil.move(part, FAILED / path.name)
        raise NotebookError(f"{path}: {problem.strip()} (see {FAILED / path.name})")
    text = nbformat.writes(notebook)
    if not to.exists() or to.read_text() != text:
        to.write_text(text)
    part.unlink()


def clean(notebook: Any) -> str:
    """Drop from an executed notebook what differs between equal runs; returns why it must not be published, or ''."""
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        for name in ("papermill", "execution"):
            cell.metadata.pop(name, None)
        tags = cell.metadata.get("tags", [])
        if "injected-parameters" in tags:
            cell["id"] = "injected-parameters"
            cell.metadata["tags"] = [*tags, "remove-cell"]  # where it ran is of no interest to readers
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                return f"cell {cell['id']} holds an error: {output.ename}"
            if output.get("name") == "stderr":
                return f"cell {cell['id']} wrote to stderr: {output.text.splitlines()[0]}"
    return ""


def run_notebooks(parameters: Mapping[str, Any], names: Sequence[str] = (), say: Callable[[str], None] = print) -> int:
    """Execute notebooks (all, or those named) into book/notebooks/; returns how many were refused, each with a line.

    The parameters are for those that show results; LESSONS derive, and take none of them.
    """
    paths = sorted(NOTEBOOKS.glob("*.ipynb"))
    if unknown := sorted(set(names) - {p.stem for p in paths}):
        raise ValueError(f"no such notebook: {', '.join(unknown)}; known: {', '.join(p.stem for p in paths)}")
    # set for the kernels: they inherit this process's environment
    os.environ.update(TQDM_DISABLE="1", PYTHONHASHSEED="0", MPLBACKEND="module://matplotlib_inline.backend_inline")
    EXECUTED.mkdir(parents=True, exist_ok=True)
    for stale in set(EXECUTED.glob("*.ipynb")) - {EXECUTED / p.name for p in paths}:
        stale.unlink()

    def run(path: Path) -> tuple[bool, str]:
        try:
            execute(path, {} if path.stem in LESSONS else parameters, EXECUTED / path.name)
            return True, f"{path} -> {EXECUTED / path.name}"
        except NotebookError as err:
            return False, str(err)

    refused = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # the work is done in kernels, which are processes
        for good, line in pool.map(run, [path for path in paths if not names or path.stem in names]):
            say(line)
            refused += not good
    return refused


def write_generated(committed: Path, folder: Path = GENERATED) -> None:
    """What prose pages take from the committed results: values.json for the `val` role, and the tables they include."""
    nowhere = str(committed / "none")  # prose quotes no machine's own runs
    results, paper = store.open_results(local_folder=nowhere, committed=str(committed)), report.load_paper()
    profile = results.profile
    judged = report.judge(results.published, profile, paper)
    folder.mkdir(parents=True, exist_ok=True)
    found = report.values(results.published, profile, paper) | {"claims": verdicts.values(judged)}
    (folder / "values.json").write_text(json.dumps(found, indent=1, sort_keys=True, allow_nan=False) + "\n")
    (folder / "in_short.md").write_text(verdicts.in_short(judged))
    (folder / "verdicts.md").write_text(verdicts.as_table(judged))
    (folder / "how_far.md").write_text(report.how_far(results.published, profile, report.load_paper(report.NUMBERS)))
    (folder / "open.md").write_text(verdicts.open_questions(judged))
    (folder / "profiles.md").write_text(report.profile_table())
    (folder / "provenance.md").write_text(report.provenance(store.published(committed)))
    explore.write(folder / "site/explore", results, paper)


def vendor_mathjax(to: Path = VENDORED / "mathjax") -> None:
    """Copy out of the installed wheel what the pages use of MathJax, so that none asks another host: 1.8 MB of 24."""
    roots = [Path(place) / "sphinx-mathjax-offline/static/mathjax" for place in sys.path]
    source = next((root for root in roots if (root / "tex-chtml.js").exists()), None)
    if source is None:
        raise ValueError("MathJax is not installed: pip install sphinx-mathjax-offline")
    extensions = (path for path in source.glob("input/tex/extensions/*.js") if path.name != "all-packages.js")
    for path in (source / "tex-chtml.js", *source.glob("output/chtml/fonts/woff-v2/*.woff"), *extensions):
        target = to / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
