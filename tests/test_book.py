"""The book and the shape of the project: notebooks, strict gate, imports, floor plan, and a whole site built anew."""

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

from decoupled import plan, publish
from decoupled.site import check_site, toc_entries

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SOURCES = sorted((ROOT / "src/decoupled").glob("*.py"))

# who may import whom; the order of the rooms in the README follows the same arrows
MAY_IMPORT = {
    "schedules": set(),
    "optim": set(),
    "variants": {"optim"},
    "units": set(),
    "models": set(),
    "data": set(),
    "runs": {"schedules"},
    "profiles": set(),
    "plan": {"profiles", "runs"},
    "pack": {"optim", "models", "data", "schedules", "runs"},
    "engine": {"models", "data", "runs", "pack"},
    "store": {"runs", "plan"},
    "workers": {"runs", "store", "engine", "data"},
    "cluster": {"workers"},
    "sweep": {"runs", "store", "workers"},
    "outlook": {"runs", "plan", "sweep", "engine", "models"},
    "inference": set(),
    "evidence": {"runs", "plan", "inference"},
    "measures": {"inference", "evidence"},
    "studies": {"inference", "evidence", "measures"},
    "claims": {"runs", "inference", "evidence", "measures", "studies"},
    "report": {"runs", "plan", "store", "inference", "evidence", "claims"},
    "verdicts": {"store", "report", "claims"},
    "proofs": set(),
    "figures": set(),
    "curves": {"figures"},
    "chapters": {"runs", "plan", "store", "inference", "evidence", "measures", "report", "figures", "curves"},
    "advice": {"runs", "plan", "chapters"},
    "sgdr": {"evidence", "report", "curves", "chapters"},
    "session": {"runs", "plan", "store", "data", "engine", "workers", "sweep", "outlook"},
    "explore": {"runs", "plan", "store", "inference", "evidence", "report", "figures", "chapters"},
    "publish": {"store", "report", "verdicts", "explore"},
    "site": set(),
    "pdf": {"site"},
    "__main__": {
        "runs", "plan", "store", "engine", "data", "workers", "cluster", "sweep", "outlook", "claims", "report",
        "publish", "units", "site", "pdf",
    },
    "__init__": {"optim"},
}  # fmt: skip
TORCH_FREE = (
    "schedules", "plan", "store", "claims", "report", "verdicts", "figures", "curves", "chapters", "advice", "sgdr",
    "session", "publish", "proofs", "units", "site", "pdf", "explore", "outlook",
)  # fmt: skip


# --- notebooks as they are committed ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_clean_and_parametrised(path: Path) -> None:
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert all(re.fullmatch(r"[a-z-]+", cell.id) for cell in notebook.cells)  # stable ids, given by hand
    assert [cell.id for cell in code[:2]] == ["install", "parameters"]
    assert code[0].metadata.tags == ["remove-cell"] and "parameters" in code[1].metadata.tags
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in code) == 1
    shows_results = {"local_results": "data/runs", "profile": "cpu", "train": False}
    publish.check_parameters(path, {} if path.stem in publish.LESSONS else shows_results)


def test_every_page_of_the_contents_exists_and_every_notebook_is_in_it() -> None:
    entries = set(toc_entries(yaml.safe_load((ROOT / "book/_toc.yml").read_text())))
    notebooks = {f"notebooks/{path.stem}" for path in NOTEBOOKS}
    assert notebooks == {entry for entry in entries if entry.startswith("notebooks/")}
    assert all((ROOT / f"book/{entry}.md").exists() for entry in entries - notebooks)


def test_no_notebook_trains_unasked_and_every_experiment_has_one() -> None:
    assert {path.stem for path in NOTEBOOKS} == {*plan.EXPERIMENTS, "verdicts", *publish.LESSONS}
    for path in NOTEBOOKS:
        if path.stem in publish.LESSONS:
            continue
        cell = next(c for c in nbformat.read(path, 4).cells if "parameters" in c.metadata.get("tags", []))
        assert re.search(r"^train = False\b", cell.source, flags=re.M)


PROSE_NUMBER = re.compile(r"\d+(?:\.\d+)?\s*(?:%|per cent|percent|pp\b|points)")


def test_no_result_is_typed_into_prose() -> None:
    texts = {name: (ROOT / f"book/{name}.md").read_text() for name in ("index", "advice", "provenance")}
    for path in NOTEBOOKS:
        cells = nbformat.read(path, 4).cells
        texts[path.stem] = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    for name, text in texts.items():
        prose = re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", text, flags=re.S)
        assert not PROSE_NUMBER.findall(prose.replace("95 %", "")), f"{name} quotes a number that no run computed"


STATEMENTS = {  # numbers by document; those left out of the second are tricks that it shares with the first
    "S0": [*range(1, 12)],
    "S1": [*range(1, 14), *range(20, 24)],
    "S2": [*range(1, 12)],
    "S3": [*range(1, 11)],
    "S4": [*range(1, 11)],
}


def test_the_page_on_tutorials_has_every_statement_once_with_a_verdict_and_a_place() -> None:
    text = (ROOT / "book/tutorials.md").read_text()
    rows = re.findall(r"^(S\d-\d+) \{bdg-\w+\}`(\w+)` (.+)\n: (.+)$", text, flags=re.M)
    wanted = [f"{document}-{n}" for document, ns in STATEMENTS.items() for n in ns]
    assert [row[0] for row in rows] == wanted
    known = {"right", "imprecise", "wrong", "bug", "unverified", "missing"}
    for name, verdict, says, place in rows:
        assert verdict in known and len(says) > 10, name
        assert re.search(r"\{(doc|ref|prf:ref|numref|eq)\}`|See S\d-\d+", place), (
            f"{name} does not say where it is shown"
        )


# --- the strict gate --------------------------------------------------------------------------------------------------


def notebook(tmp_path: Path, *sources: str, tag: bool = True, kernel: str = "python3") -> Path:
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    if tag:
        cells[0].metadata["tags"] = ["parameters"]
    book = nbformat.v4.new_notebook(
        cells=cells,
        metadata={"kernelspec": {"name": kernel, "display_name": kernel}, "language_info": {"name": "python"}},
    )
    path = tmp_path / "trial.ipynb"
    nbformat.write(book, path)
    return path


@pytest.mark.parametrize(
    ("sources", "options", "parameters", "message"),
    [
        (["a = 1"], {}, {"b": 2}, "unknown parameter 'b'; known: a"),
        (["a = 1"], {}, {"a": "2"}, "parameter a must be int like its default 1, got '2'"),
        (["a = 1"], {}, {"a": 1.0}, "parameter a must be int like its default 1, got 1.0"),
        (["a = 1"], {"tag": False}, {}, "needs exactly one cell tagged `parameters`, has 0"),
        (["a = 1"], {"kernel": "julia"}, {}, "its kernel is 'julia', must be python3"),
        (["a = 1", "1 / 0"], {}, {"a": 2}, "ZeroDivisionError"),
        (["a = 1", "import sys; print('careful', file=sys.stderr)"], {}, {}, "wrote to stderr: careful"),
    ],
)
def test_a_notebook_that_is_not_clean_is_refused_in_one_line(
    tmp_path, monkeypatch, sources, options, parameters, message
) -> None:
    monkeypatch.chdir(tmp_path)
    path = notebook(tmp_path, *sources, **options)
    with pytest.raises(publish.NotebookError, match=re.escape(message)) as refused:
        publish.execute(path, parameters, tmp_path / "out.ipynb")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out.ipynb").exists()


def test_a_clean_notebook_gets_its_parameters_and_equal_runs_give_equal_files(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    path, out = notebook(tmp_path, "a = 1", "print(a + 1)"), tmp_path / "out.ipynb"
    publish.execute(path, {"a": 41}, out)
    first = out.read_bytes()
    assert [o.text for c in nbformat.read(out, 4).cells for o in c.outputs] == ["42\n"]
    publish.execute(path, {"a": 41}, out)
    assert out.read_bytes() == first


# --- the shape of the project -----------------------------------------------------------------------------------------


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "decoupled":
            rooms |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("decoupled."):
            rooms.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.Import):
            rooms |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("decoupled.")}
    return rooms


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
def test_imports_point_one_way_and_rooms_stay_small(path: Path) -> None:
    assert imported_rooms(path) <= MAY_IMPORT[path.stem]
    assert len(path.read_text().splitlines()) <= 400


def test_results_can_be_read_without_torch() -> None:
    names = ", ".join(f"decoupled.{room}" for room in TORCH_FREE)
    code = f"import sys, {names}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_readme_is_the_floor_plan() -> None:
    listed = set(re.findall(r"^      (\w+\.py) ", (ROOT / "README.md").read_text(), flags=re.M))
    assert listed == {path.name for path in SOURCES} - {"__init__.py"}


# --- a whole site, from a smoke run -----------------------------------------------------------------------------------


def test_the_site_has_every_page_and_asks_no_other_host(site: Path) -> None:
    pages, problems = check_site(site, ROOT / "book/_toc.yml")
    assert problems == []
    assert pages >= len(toc_entries(yaml.safe_load((ROOT / "book/_toc.yml").read_text())))


def test_the_site_shows_this_machines_smoke_run_and_both_themes(site: Path) -> None:
    for name in plan.EXPERIMENTS:
        page = (site / f"notebooks/{name}.html").read_text()
        assert "profile smoke" in page
        for theme in ("light", "dark"):
            assert f"{name}-{theme}.svg" in page and f"{name}-local-{theme}.svg" in page
            assert list(site.glob(f"_images/{name}-{theme}.svg"))


def test_broken_sites_are_found(site: Path, tmp_path: Path) -> None:
    copy = tmp_path / "html"
    shutil.copytree(site, copy, ignore=shutil.ignore_patterns("_static", "mathjax", "_images"))
    (copy / "protocol.html").unlink()
    page = copy / "references.html"
    page.write_text(page.read_text().replace("</body>", '<script src="https://example.org/x.js"></script></body>'))
    _, problems = check_site(copy, ROOT / "book/_toc.yml")
    text = "\n".join(problems)
    assert "protocol.html is in the table of contents but missing or empty" in text
    assert "references.html: <script> loads https://example.org/x.js" in text
    assert "no file for" in text


def test_every_page_says_how_much_of_a_plan_is_there(site: Path) -> None:
    for name in plan.EXPERIMENTS:
        assert re.search(r"\d+ of \d+ planned runs", (site / f"notebooks/{name}.html").read_text()), name
    page = (site / "provenance.html").read_text()
    assert all(f"data/results/{path.name}" in page for path in (ROOT / "data/results").glob("*.parquet"))


def test_every_claim_leads_to_its_chapter(site: Path) -> None:
    page = (site / "notebooks/verdicts.html").read_text()
    for name in plan.EXPERIMENTS:
        assert f'href="{name}.html"' in page, name


def test_values_quoted_in_prose_come_from_the_results(site: Path) -> None:
    values = json.loads((site.parents[1] / "book/generated/values.json").read_text())
    assert values["paper"]["adamw"]["cosine"]["error"] == pytest.approx(3.92, abs=0.01)  # protocol of the paper, Fig. 2
    assert f"{values['adamw']['cosine']['error']:.2f}" in (site / "index.html").read_text()
