"""Publishing, and rerunning elsewhere: workflows, the cell that installs, Binder, metadata, what pages say of them."""

import ast
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup

from decoupled.__main__ import main
from decoupled.site import toc_entries

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text())
REPOSITORY, SITE = CONFIG["repository"]["url"], CONFIG["html"]["baseurl"]


def makes(target: str, *variables: str) -> str:
    """The commands that `make target` would run; AssertionError if there is no such target."""
    assert re.search(rf"^{target}:.*##", (ROOT / "Makefile").read_text(), flags=re.M), f"no target {target}"
    command = ["make", "-n", "--no-print-directory", target, *variables]
    alone = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def knows(command: str) -> None:
    """AssertionError unless `python -m decoupled command` exists."""
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0, command


# --- workflows --------------------------------------------------------------------------------------------------------

TRIGGERS = {
    "book": {"push": {"branches": ["**"]}, "pull_request": None},
    "links": {"schedule": [{"cron": "17 5 * * 1"}], "workflow_dispatch": None},
    "release": {"push": {"tags": ["v*"]}},
}
RIGHTS = {  # all others only read
    ("book", "deploy"): {"pages": "write", "id-token": "write"},
    ("release", "release"): {"contents": "write"},
}


def workflow(path: Path) -> dict[Any, Any]:
    return yaml.safe_load(path.read_text())


def test_there_are_exactly_these_workflows() -> None:
    assert {path.stem for path in WORKFLOWS} == set(TRIGGERS)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_action_is_pinned_by_its_commit_with_the_version_beside_it(path: Path) -> None:
    used = re.findall(r"^ +(?:- )?uses: (.*)$", path.read_text(), flags=re.M)
    assert len(used) == sum("uses" in step for job in workflow(path)["jobs"].values() for step in job["steps"]) > 0
    for line in used:
        assert re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line


def test_an_action_has_one_version() -> None:
    lines = {line for path in WORKFLOWS for line in re.findall(r"uses: (.*)$", path.read_text(), flags=re.M)}
    assert len({line.partition("@")[0] for line in lines}) == len(lines)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_has_no_more_rights_than_it_needs_and_ends_by_itself(path: Path) -> None:
    flow = workflow(path)
    assert flow[True] == TRIGGERS[path.stem]  # YAML 1.1 reads `on` as a truth value
    assert flow["permissions"] == {} and flow["concurrency"]["group"]
    assert flow["defaults"]["run"]["shell"] == "bash -euo pipefail {0}"
    for name, job in flow["jobs"].items():
        rights = RIGHTS.get((path.stem, name), {"contents": "read"})
        assert job["permissions"] == rights and job["timeout-minutes"] <= 120 and job["runs-on"] == "ubuntu-24.04"
        for step in job["steps"]:
            action, script = step.get("uses", "").partition("@")[0], step.get("run", "")
            assert "${{" not in script, f"{name}: an expression inside a script is code by whoever sets its value"
            assert "shell" not in step
            if action == "actions/checkout":
                assert rights == {"contents": "read"}, f"{name} may write, and runs what others wrote"
                assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_what_a_workflow_runs_exists(path: Path) -> None:
    scripts = "\n".join(step.get("run", "") for job in workflow(path)["jobs"].values() for step in job["steps"])
    for target in re.findall(r"\bmake (\S+)", scripts):
        makes(target)
    for command in re.findall(r"-m decoupled (\S+)", scripts):
        knows(command)
    assert subprocess.run(["bash", "-n"], input=scripts, text=True, check=False).returncode == 0


def test_only_a_checked_book_of_a_tested_main_is_published() -> None:
    jobs = workflow(ROOT / ".github/workflows/book.yml")["jobs"]
    assert set(jobs["deploy"]["needs"]) == {"test", "site"} and "refs/heads/main" in jobs["deploy"]["if"]
    steps = jobs["site"]["steps"]
    (built,) = (n for n, step in enumerate(steps) if step.get("run") == "make book")
    (sent,) = (n for n, step in enumerate(steps) if "upload-pages" in step.get("uses", ""))
    assert built < sent and steps[sent]["with"] == {"path": "_build/html", "include-hidden-files": True}
    made = makes("book").strip().splitlines()
    assert made[-1].endswith("-m decoupled check _build/html") and any(".nojekyll" in line for line in made)
    minimum = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    versions = jobs["test"]["strategy"]["matrix"]["python"]
    assert minimum == f">={versions[0]}" and "3.13" in versions


def test_a_release_carries_the_site_the_results_and_the_lock_with_checksums() -> None:
    commands = makes("release-files")
    for part in ("-C _build html", "data/results", "requirements.lock", "sha256sum"):
        assert part in commands
    build, release = workflow(ROOT / ".github/workflows/release.yml")["jobs"].values()
    assert [step["with"]["path"] for step in build["steps"] if "upload" in step.get("uses", "")] == ["build/release/"]
    assert "sha256sum --check" in release["steps"][-1]["run"] and "gh release create" in release["steps"][-1]["run"]


# --- names, addresses and versions that several files repeat ----------------------------------------------------------


def test_all_files_give_the_addresses_of_the_configuration() -> None:
    names = [".zenodo.json", "CITATION.cff", "README.md", "Makefile", "pyproject.toml", "_config.yml"]
    places = [ROOT / name for name in names] + NOTEBOOKS + [*(ROOT / "book").glob("*.md"), *(ROOT / "binder").iterdir()]
    owner, page = urlsplit(REPOSITORY).path.split("/")[1], urlsplit(SITE)
    for place in places:
        for url in re.findall(rf"https://[\w./-]*{owner}[\w./-]*", place.read_text()):
            assert url in (REPOSITORY, SITE), f"{place.name} names {url}"
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (cff["repository-code"], cff["url"]) == (REPOSITORY, SITE)
    sphinx = CONFIG["sphinx"]["config"]
    assert (sphinx["ogp_site_url"], sphinx["notfound_urls_prefix"]) == (SITE, page.path)
    assert set(re.findall(r'href="(/[^/"]*/)', sphinx["notfound_context"]["body"])) == {page.path}


ZENODO = {  # what its interface for deposits documents
    "upload_type": {"software"},
    "access_right": {"open"},
    "language": {"eng"},
    "license": {"MIT"},
    "relation": {"references", "compiles"},
    "resource_type": {"publication-conferencepaper", "publication-book"},
}
FREE = {"title", "version", "description", "creators", "keywords", "related_identifiers"}


def test_zenodo_and_the_citation_file_say_the_same_of_this_version() -> None:
    record, cff = (yaml.safe_load((ROOT / name).read_text()) for name in (".zenodo.json", "CITATION.cff"))
    json.loads((ROOT / ".zenodo.json").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert record["version"] == cff["version"] == project["version"] == importlib.metadata.version("decoupled")
    assert (record["title"], record["keywords"]) == (cff["title"], cff["keywords"])
    assert [c["name"] for c in record["creators"]] == [a["name"] for a in cff["authors"]]
    assert record.keys() == FREE | ZENODO.keys() - {"relation", "resource_type"}
    for item in (record, *record["related_identifiers"]):
        assert all(item[key] in ZENODO[key] for key in item.keys() & ZENODO.keys())
    papers = [r["identifiers"][0]["value"] for r in cff["references"]]
    assert [item["identifier"] for item in record["related_identifiers"]] == [*papers, SITE]
    assert set(cff["license"]) == set(project["license"].split(" AND "))


def test_binder_installs_what_setup_does() -> None:
    wanted = yaml.safe_load((ROOT / "binder/environment.yml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (torch,) = (need.removeprefix("torch") for need in project["dependencies"] if need.startswith("torch"))
    python = project["requires-python"].removeprefix(">=")
    assert wanted["dependencies"] == [f"python={python}", "pip", f"pytorch-cpu{torch}"]
    script = ROOT / "binder/postBuild"
    assert os.access(script, os.X_OK)
    recipe = (ROOT / "Makefile").read_text().replace("--disable-pip-version-check ", "")
    installs = re.findall(r"pip install (?:--quiet --no-cache-dir )(.*)", script.read_text())
    assert len(installs) == 2 and all(f"pip install --quiet {what}" in recipe for what in installs)


def test_the_picture_for_links_has_the_size_that_they_want() -> None:
    picture = (ROOT / "book/_static/social-card.png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n" and len(picture) < 300_000
    assert [int.from_bytes(picture[at : at + 4], "big") for at in (16, 20)] == [1200, 630]
    assert "book/_static/social-card.png" in makes("card")


# --- the first cell of a notebook -------------------------------------------------------------------------------------


def install_cell(path: Path) -> str:
    (source,) = (cell.source for cell in nbformat.read(path, 4).cells if cell.id == "install")
    return source


def modules(source: str) -> set[str]:
    """Every module that a Python source imports, `from decoupled import x` as decoupled.x."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"decoupled.{a.name}" for a in node.names} if node.module == "decoupled" else {node.module}
    return found


def test_notebooks_share_one_first_cell_and_it_installs_what_they_import() -> None:
    (source,) = {install_cell(path) for path in NOTEBOOKS}
    assert f'"{REPOSITORY}"' in source
    todo = {
        m
        for path in NOTEBOOKS
        for c in nbformat.read(path, 4).cells
        if c.cell_type == "code"
        for m in modules(c.source)
    }
    seen: set[str] = set()
    while todo:
        seen.add(name := todo.pop())
        room = ROOT / f"src/{name.replace('.', '/')}.py"
        todo |= (modules(room.read_text()) if room.exists() else set()) - seen
    others = {name.partition(".")[0] for name in seen} - set(sys.stdlib_module_names) - {"decoupled"}
    packages = set(re.search(r'"(matplotlib [a-z ]+)"', source)[1].split())  # type: ignore[index]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    installed_anyway = {re.split("[><=]", need)[0] for need in project["dependencies"]} | {"IPython"}
    assert others - installed_anyway <= packages
    assert packages <= others | {"pyarrow"}  # which pandas needs for Parquet
    assert packages <= {re.split("[><=]", n)[0] for n in project["optional-dependencies"]["reproduce"]}


DRIVER = """
import json, subprocess, sys
real, ran = subprocess.run, []
def run(command, **options):
    ran.append(command)
    if command[0] == "git":
        return real(command, **options)
subprocess.run = run
if {hidden}:
    sys.modules["decoupled"] = None  # importing it is an ImportError
exec(sys.argv[1])
print(json.dumps([str(Path.cwd()), ran]))
"""


def run_cell(folder: Path, hidden: bool) -> tuple[Path, list[list[str]]]:
    """Run the first cell in `folder` with this repository as the remote one; where it ends, and what it ran."""
    here = {
        "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.{ROOT.as_uri()}.insteadOf", "GIT_CONFIG_VALUE_0": REPOSITORY,
    }  # fmt: skip
    command = [sys.executable, "-c", DRIVER.format(hidden=hidden), install_cell(NOTEBOOKS[0])]
    done = subprocess.run(command, cwd=folder, env=os.environ | here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    last, ran = json.loads(done.stdout)
    return Path(last), ran


def test_in_a_copy_the_first_cell_only_goes_to_the_top_folder() -> None:
    assert run_cell(ROOT / "notebooks", hidden=False) == (ROOT, [])


def test_in_a_copy_without_the_package_it_installs_that_copy() -> None:
    last, (pip,) = run_cell(ROOT / "notebooks", hidden=True)
    assert last == ROOT and pip[:4] == [sys.executable, "-m", "pip", "install"] and "." in pip


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs the repository to clone from")
def test_opened_alone_it_fetches_the_last_commit_once_and_installs_it(tmp_path: Path) -> None:
    last, (git, pip) = run_cell(tmp_path, hidden=True)
    assert git[:2] == ["git", "clone"] and "." in pip
    assert last.parent == tmp_path and (last / "_config.yml").is_file() and (last / "data/results").is_dir()
    log = subprocess.run(["git", "rev-list", "--count", "HEAD"], cwd=last, capture_output=True, text=True, check=True)
    assert log.stdout == "1\n"
    again, ran = run_cell(tmp_path, hidden=True)  # a restarted kernel is back in the folder where it began
    assert again == last and len(ran) == 1 and ran[0][3] == "install"


# --- the built site ---------------------------------------------------------------------------------------------------


def soups(site: Path) -> dict[str, Any]:
    names = toc_entries(yaml.safe_load((ROOT / "book/_toc.yml").read_text()))
    return {name: BeautifulSoup((site / f"{name}.html").read_text(), "html.parser") for name in names}


def test_below_every_computed_figure_stands_the_command_that_draws_it(site: Path) -> None:
    shown: dict[str, str] = {}
    for name, page in soups(site).items():
        for figure in page.select("figure:has(div.themed-figure)"):
            (details,) = figure.select("details.made-by")
            draw, *train = details.pre.get_text().splitlines()
            notebook = draw.removeprefix(".venv/bin/python -m decoupled notebooks ")
            source = (ROOT / f"notebooks/{notebook}.ipynb").read_text()
            stem = Path(unquote(figure.img["src"])).stem.removesuffix("-light")
            assert f'\\"{stem}\\"' in source or stem == notebook, f"{name}: {notebook} does not draw {stem}"
            assert details.a["href"] == f"{REPOSITORY}/blob/main/notebooks/{notebook}.ipynb"
            assert len(train) == (("planned runs" in figure.figcaption.p.get_text()) and "local" not in stem), stem
            for command in train:
                make, target, *variables = command.split()
                assert make == "make" and f"--experiments {notebook}" in makes(target, *variables)
            shown[stem] = notebook
    assert shown["answer"] == "grids" and shown["penalty-contours"] == "penalty" and shown["forest"] == "verdicts"
    assert len(shown) > 40


def test_launch_buttons_open_the_committed_notebook(site: Path) -> None:
    owner_and_name = urlsplit(REPOSITORY).path.strip("/")
    for name, page in soups(site).items():
        links = [str(a["href"]) for a in page.select(".dropdown-launch-buttons a")]
        path = f"{name}.ipynb"
        assert links == [
            f"https://mybinder.org/v2/gh/{owner_and_name}/main?urlpath=lab/tree/{path}",
            f"https://colab.research.google.com/github/{owner_and_name}/blob/main/{path}",
        ] * name.startswith("notebooks/"), name
        assert not links or (ROOT / path).exists()


def test_every_page_says_where_it_lies_and_which_picture_a_link_to_it_shows(site: Path) -> None:
    listed = set(re.findall("<loc>(.*?)</loc>", (site / "sitemap.xml").read_text()))
    pages = soups(site)
    assert listed == {f"{SITE}{name}.html" for name in pages}
    for name, page in pages.items():
        (canonical,) = page.select('link[rel="canonical"]')
        facts = {str(tag["property"]): str(tag["content"]) for tag in page.select("meta[property]")}
        assert canonical["href"] == facts["og:url"] == f"{SITE}{name}.html"
        assert facts["og:image"] == f"{SITE}_static/social-card.png" and facts["og:description"] and facts["og:title"]
    assert (site / "_static/social-card.png").read_bytes() == (ROOT / "book/_static/social-card.png").read_bytes()


def test_the_page_for_missing_pages_works_in_every_folder(site: Path) -> None:
    page: Any = BeautifulSoup((site / "404.html").read_text(), "html.parser")
    top = urlsplit(SITE).path
    inside = [str(tag[key]) for tag in page.find_all(True) for key in ("href", "src", "action") if tag.get(key)]
    for url in (urlsplit(url) for url in inside if not urlsplit(url).netloc and not url.startswith("#")):
        assert url.path.startswith(top) and (site / url.path.removeprefix(top)).is_file(), url
    assert f"{top}index.html" in inside and "Page not found" in [h1.get_text() for h1 in page.select("article h1")]


def test_mathjax_comes_with_its_licence(site: Path) -> None:
    assert (site / "mathjax/tex-chtml.js").is_file() and "Apache License" in (site / "mathjax/LICENSE").read_text()
