"""The explorer in the page: by keyboard, by click and by address it shows the numbers of the committed results.

Chromium opens the page from a file and from a server, under the content security policy of the book.
"""

import contextlib
import functools
import gzip
import http.server
import json
import re
import shutil
import threading
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest

from decoupled import explore, store

sync_api = pytest.importorskip("playwright.sync_api")

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium")
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")]

HEAD = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>A page</title>
<link rel="icon" href="data:,">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="script-src 'self'">
<link rel="stylesheet" href="explore.css"><script src="explore.js"></script></head><body><main>"""
PAGE = (
    HEAD + '<h1>Maps</h1><div id="explore" data-from="explore/"><p>for readers without scripts</p></div>'
    '<p><a data-explore="grids-sgd/torch" href="#explore">go</a></p></main></body></html>'
)
PLAIN = HEAD + '<p id="explorer" class="explore-cell">Some text.</p><svg></svg></main></body></html>'


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the page, a page without the explorer, and the data of the committed results."""
    folder = tmp_path_factory.mktemp("page")
    results = store.open_results(local_folder=str(ROOT / "data/none"), committed=str(ROOT / "data/results"))
    explore.write(folder / "explore", results, pd.read_csv(ROOT / "data/paper/paper_figures.csv"))
    for name in ("explore.js", "explore.css"):
        shutil.copy(ROOT / "book/_static" / name, folder)
    (folder / "page.html").write_text(PAGE)
    (folder / "plain.html").write_text(PLAIN)
    return folder


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as play:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser, folder):
    """Opens a page; at the end no page may have complained."""
    contexts, complaints = [], []

    def go(fragment="", width=1366, name="page.html", base="", motion="reduce", **options):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, reduced_motion=motion, **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: complaints.extend([said.text] * (said.type in ("error", "warning"))))
        page.goto(f"{base or folder.as_uri()}/{name}{fragment}")
        if name != "plain.html":
            page.wait_for_selector(".explore-panel strong")
        return page

    yield go
    for context in contexts:
        context.close()
    assert complaints == []


def map_of(folder, name):
    text = (folder / f"explore/{name}.js").read_text()
    return json.loads(text[text.index("{") : text.rindex("}") + 1])


def mean_of(keys):
    """Mean test error of the rows with these keys in the Parquet file, as the page writes it."""
    frames = [
        pd.read_parquet(path, columns=["key", "test_error"]) for path in (ROOT / "data/results").glob("*.parquet")
    ]
    rows = pd.concat(frames)
    mine = rows[rows["key"].isin(keys)]
    assert len(mine) == len(keys)
    return f"{mine['test_error'].mean():.2f} %"


def headline(page):
    return page.text_content(".explore-panel strong")


def focused(page):
    return page.evaluate("document.activeElement.getAttribute('aria-label')")


def number(x):
    """As the page writes a learning rate or a decay."""
    return f"{x:g}" if x == 0 or x >= 0.001 else re.sub(r"\.?0*e-0?", "e-", f"{x:.2e}")


@pytest.mark.parametrize("width", [390, 1366])
def test_a_map_and_a_cell_are_chosen_by_keyboard(visit, folder, width):
    page = visit(width=width)
    page.focus("#explore select")
    page.keyboard.press("Tab")  # into the maps of Figure 2: AdamW is chosen
    page.keyboard.press("ArrowLeft")  # Adam with L2
    page.wait_for_selector("svg[aria-label^='This book: Adam with L2']")
    page.keyboard.press("Tab")  # the unit
    page.keyboard.press("Tab")  # the paper's map
    page.keyboard.press("Tab")
    if width < 500:
        page.keyboard.press("Tab")  # a button that leads to the panel
    # ours: its best cell
    data = map_of(folder, "ours-grids-adam")
    best = min(data["cells"], key=lambda cell: cell["error"])
    label = f"alpha {number(best['alpha'])}, decay {number(best['decay'])}: {mean_of(best['keys'])}, best"
    assert focused(page) == label
    page.keyboard.press("Home")  # no decay
    page.keyboard.press("ArrowRight")
    for _ in data["alphas"]:
        page.keyboard.press("ArrowDown")  # the last press finds no row
    page.keyboard.press("ArrowUp")
    alpha, decay = data["alphas"][1], data["decays"][1]
    cell = next(c for c in data["cells"] if (c["alpha"], c["decay"]) == (alpha, decay))
    assert focused(page).startswith(f"alpha {number(alpha)}, decay {number(decay)}: {mean_of(cell['keys'])}")
    assert headline(page) == mean_of(cell["keys"])  # looked at, and not yet chosen
    assert page.get_attribute("[aria-selected=true]", "aria-label") == label
    page.keyboard.press("Enter")
    assert page.get_attribute("[aria-selected=true]", "aria-label") == focused(page)
    assert focused(page) in page.text_content("[aria-live=polite]")
    assert page.evaluate("location.hash") == f"#grids-adam/ours/{alpha:g}/{decay:g}"
    assert " ".join([data["command"], *cell["keys"]]) == page.text_content(".explore-command code")


@pytest.mark.parametrize("width", [390, 1366])
def test_every_clicked_cell_shows_the_number_of_the_store(visit, folder, width):
    page = visit("#grids-sgdw", width=width, has_touch=width < 500)
    data = map_of(folder, "ours-grids-sgdw")
    boxes = page.locator("svg[aria-label^='This book'] [role=gridcell]")
    ordered = [c for alpha in reversed(data["alphas"]) for c in data["cells"] if c["alpha"] == alpha]
    assert boxes.count() == len(ordered) == len(data["alphas"]) * len(data["decays"])
    for k in range(0, len(ordered), 3):
        box, cell = boxes.nth(k), ordered[k]
        (box.tap if width < 500 else box.click)()
        assert headline(page) == mean_of(cell["keys"])
        assert box.get_attribute("aria-selected") == "true" and page.locator("[aria-selected=true]").count() == 1
        assert page.locator(".explore-panel tbody tr").count() == len(cell["keys"])
        assert page.locator(".explore-readout:visible").text_content().split(": ")[1].startswith(mean_of(cell["keys"]))
    if width < 500:  # the panel is out of sight there
        page.evaluate("scrollTo(0, 0)")
        assert page.evaluate("document.querySelector('.explore-panel').getBoundingClientRect().top > innerHeight")
        page.locator(".explore-readout button:visible").tap()
        page.wait_for_function("document.querySelector('.explore-panel').getBoundingClientRect().top < innerHeight / 4")
    paper = page.locator("svg[aria-label^='The paper'] [role=gridcell]")
    table = pd.read_csv(ROOT / "data/paper/paper_figures.csv").query("figure == 'Fig2' and algorithm == 'SGDW'")
    lines = table.sort_values(["lr", "wd"], ascending=[False, True]).to_dict("records")
    assert paper.count() == len(lines) == 121
    for k in (0, 60, 71, 120):
        paper.nth(k).click()
        bound = "at least " if lines[k]["saturated"] else ""
        assert headline(page) == f"{bound}{lines[k]['error_pct']:.2f} %"


def test_hover_looks_and_does_not_choose(visit):
    page = visit()
    chosen = headline(page)
    page.hover("svg[aria-label^='This book'] [role=row]:nth-of-type(2) [role=gridcell]:last-child")
    assert headline(page) != chosen
    page.hover("h1")
    assert headline(page) == chosen and page.evaluate("location.hash") == ""


def places(page, source):
    """Of a map, in units of its picture: where its cells, row by row, its ticks and its ridge are."""
    return page.evaluate(
        """(source) => {
          const svg = document.querySelector(`svg[aria-label^="${source}"]`), frame = svg.getBoundingClientRect();
          const scale = svg.viewBox.baseVal.width / frame.width;
          const rows = [...svg.querySelectorAll("[role=row]")].map((row) => [...row.children].map((cell) => {
            const box = cell.querySelector("rect").getBoundingClientRect();
            return [(box.left + box.width / 2 - frame.left) * scale, (box.top + box.height / 2 - frame.top) * scale];
          }));
          const ticks = [...svg.querySelectorAll("[data-decay]")].map((t) => [+t.dataset.decay, +t.getAttribute("x")]);
          const alphas = [...svg.querySelectorAll(".explore-alpha")].map((t) => [+t.textContent, +t.getAttribute("y")]);
          const line = svg.querySelector("polyline").getAttribute("points").split(" ").map(Number);
          const slope = Number(svg.parentNode.querySelector("[data-slope]").dataset.slope);
          return { rows, ticks: ticks.filter(([decay]) => decay > 0), line, slope, alphas };
        }""",
        source,
    )


@pytest.mark.parametrize("width", [390, 1366])
@pytest.mark.parametrize("algorithm", ["adamw", "adam"])
def test_the_unit_of_torch_moves_every_cell_and_turns_the_ridge(visit, folder, algorithm, width):
    page, found = visit(f"#grids-{algorithm}", width=width), []
    for unit in ("paper", "torch"):
        page.locator(f"input[value={unit}]").check(force=True)
        found.append([places(page, source) for source in ("The paper", "This book")])
        for source, shown in zip(("paper", "ours"), found[-1], strict=True):
            data = map_of(folder, f"{source}-grids-{algorithm}")
            decays, x = np.array(shown["ticks"]).T
            per_octave, at = np.polyfit(np.log2(decays), x, 1)  # the axis, by its own labels
            alphas = np.array(data["alphas"][::-1])
            divided = alphas if (algorithm, unit) == ("adamw", "torch") else np.ones_like(alphas)
            wanted = np.array(data["decays"][1:])[None, :] / divided[:, None]
            there, down = np.moveaxis(np.array(shown["rows"])[:, 1:], 2, 0)  # without the column of decay 0
            assert (np.diff(down[:, 0]) > 0).all() and (down == pytest.approx(down[:, :1] + 0 * down, abs=0.5))
            named, base = np.array(shown["alphas"])[
                ::-1
            ].T  # labels of three digits, a third of a line below the middle
            assert named == pytest.approx(alphas, rel=5e-3) and base - 4 == pytest.approx(down[:, 0], abs=0.5)
            assert np.log2(wanted) == pytest.approx((there - at) / per_octave, abs=0.003)  # octaves
            line, rows = np.array(shown["line"]).reshape(-1, 2).T
            assert rows[::-1] == pytest.approx(down[:, 0], abs=0.5)
            drawn = np.polyfit(np.log2(data["alphas"]), (line - at) / per_octave, 1)[0]
            assert drawn == pytest.approx(shown["slope"], abs=0.01)
    for before, after in zip(*found, strict=True):
        assert after["slope"] - before["slope"] == pytest.approx(-1 if algorithm == "adamw" else 0, abs=1e-12)
    assert page.evaluate("location.hash").endswith("/torch")


def test_the_turn_is_animated_unless_motion_is_unwanted(visit):
    page = visit("#grids-adamw", motion="no-preference")
    slope = "Number(document.querySelector('[data-slope]').dataset.slope)"
    start = page.evaluate(slope)
    seen = page.evaluate(
        f"""() => new Promise((done) => {{
          const seen = new Set();
          document.querySelector("input[value=torch]").click();
          const look = () => {{
            seen.add({slope});
            if ({slope} <= {start} - 1 + 1e-12) done([...seen]); else requestAnimationFrame(look);
          }};
          look();
        }})"""
    )
    assert any(start - 1 + 1e-6 < one < start - 1e-6 for one in seen)


def test_an_address_opens_its_cell_and_a_link_another(visit, folder):
    data = map_of(folder, "ours-grids-adam")
    cell = data["cells"][7]
    page = visit(f"#grids-adam/ours/{cell['alpha']}/{cell['decay']}/torch")
    for _ in range(2):
        assert headline(page) == mean_of(cell["keys"])
        assert page.is_checked("input[value=torch]") and page.is_checked("input[value=grids-adam]")
        page.reload()
        page.wait_for_selector(".explore-panel strong")
    page.click("a[data-explore]")
    page.wait_for_selector("svg[aria-label^='This book: SGD with L2']")
    assert page.is_checked("input[value=grids-sgd]") and page.is_checked("input[value=torch]")
    page.goto(f"{folder.as_uri()}/page.html#grids-adamw/paper/0.00625/0.00025")
    page.wait_for_selector("svg[aria-label^='This book: AdamW']")
    table = pd.read_csv(ROOT / "data/paper/paper_figures.csv").query("figure == 'Fig2' and algorithm == 'AdamW'")
    (error,) = table.query("lr == 0.00625 and wd == 0.00025")["error_pct"]
    assert not page.is_checked("input[value=torch]") and headline(page) == f"{error:.2f} %"


def test_every_map_can_be_opened(visit, folder):
    open_all(visit(), folder)


def open_all(page, folder):
    """Opens every map of the index, one after the other."""
    for k, group in enumerate(map_of(folder, "index")["groups"]):
        page.select_option("#explore select", str(k))
        for entry in group["maps"]:
            page.locator(f"input[value={entry['id']}]").check(force=True)
            title = map_of(folder, f"{entry['sources'][-1]}-{entry['id']}")["title"]
            page.wait_for_selector(f"xpath=//*[@role='grid'][contains(@aria-label, ': {title}, ')]")
            assert page.locator("[role=grid]").count() == len(entry["sources"])
            assert page.locator("[role=gridcell][tabindex='0']").count() == len(entry["sources"])
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_colours_are_those_of_the_figures(visit, folder):
    page = visit("#grids-adamw")
    data = map_of(folder, "ours-grids-adamw")
    low = min(c["error"] for c in data["cells"])
    ordered = [c["error"] for alpha in reversed(data["alphas"]) for c in data["cells"] if c["alpha"] == alpha]
    fills = page.evaluate(
        "[...document.querySelectorAll('svg[aria-label^=\"This book\"] .explore-box')].map((box) => box.style.fill)"
    )
    for error, fill in zip(ordered, fills, strict=True):
        wanted = matplotlib.colormaps["cividis_r"](min(1.0, (error - low) / (0.3 * low)), bytes=True)[:3]
        assert np.array(re.findall(r"\d+", fill), int) == pytest.approx(np.array(wanted, int), abs=4)


def test_nothing_is_wider_than_a_phone(visit):
    for fragment in ("", "#grids-adamw/torch", "#schedules-adamw-step/torch"):
        page = visit(fragment, width=390)
        assert page.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [390, 390]


@contextlib.contextmanager
def serving(folder):
    """The address of a server of a folder."""
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.fixture(scope="module")
def server(folder):
    with serving(folder) as address:
        yield address


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_it_works_from_a_server_and_loads_only_what_is_shown(visit, server):
    page = visit("#grids-adam", base=server)
    loaded = page.evaluate("performance.getEntriesByType('resource').map((r) => r.name.split('/').pop()).sort()")
    assert loaded == ["explore.css", "explore.js", "index.js", "ours-grids-adam.js", "paper-grids-adam.js"]


def test_the_page_of_the_book_is_light_and_works_under_its_policy(visit, site):
    with serving(site) as address:
        page = visit("#grids-adam", name="explorer.html", base=address)
        open_all(page, site)
        paths = page.evaluate(
            "performance.getEntriesByType('resource').map((r) => decodeURI(new URL(r.name).pathname))"
        )
    assert "script-src 'self'" in page.get_attribute("meta[http-equiv=Content-Security-Policy]", "content")
    assert "/explore/ours-grids-sgd.js" in paths and len(paths) < 250  # so many a browser keeps on record
    weight = sum(len(gzip.compress((site / path.lstrip("/")).read_bytes())) for path in {*paths, "/explorer.html"})
    assert weight < 1.5e6


def test_without_its_data_the_page_says_so(browser, folder, tmp_path):
    for name in ("explore.js", "explore.css", "page.html"):
        shutil.copy(folder / name, tmp_path)
    page = browser.new_page()
    page.goto((tmp_path / "page.html").as_uri())
    page.wait_for_selector(".explore-error")
    assert "for readers without scripts" in page.text_content("#explore")
    assert "explore/index.js could not be loaded" in page.text_content("#explore")
    page.close()


def test_a_page_without_the_explorer_is_left_alone(visit):
    page = visit(name="plain.html")
    assert page.inner_html("main") == PLAIN.split("<main>")[1].split("</main>")[0]
    assert page.evaluate("window.exploreData") is None and page.evaluate("location.hash") == ""


def test_the_style_touches_only_the_explorer():
    rules = re.sub(r"/\*.*?\*/", "", (ROOT / "book/_static/explore.css").read_text(), flags=re.S)
    selectors = re.findall(r"(?:^|[{};])\s*([^{};@]+?)\s*\{", rules)
    assert len(selectors) > 30
    assert all(part.strip().startswith("#explore") for one in selectors for part in re.split(r",(?![^(]*\))", one))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(visit, server, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = visit("#grids-adamw", base=server, color_scheme=scheme)
    found = axe.Axe().run(page, "#explore").response["violations"]
    assert [(one["id"], one["nodes"][0]["html"][:120]) for one in found] == []
