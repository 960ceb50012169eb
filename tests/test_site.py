"""The finished site: in a real browser every page opens clean and can be used, from a file and over http."""

import contextlib
import functools
import gzip
import hashlib
import http.server
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from axe_playwright_python.base import AXE_SCRIPT  # type: ignore[import-untyped]
from playwright.sync_api import Browser, Page, sync_playwright

from decoupled import pdf
from decoupled.site import PDF, check_site, finish, toc_entries

ROOT = Path(__file__).parents[1]
TOC = ROOT / "book/_toc.yml"
NAMES = toc_entries(yaml.safe_load(TOC.read_text()))
WIDTHS = (390, 768, 1366)
CHROMIUM = next(filter(None, map(shutil.which, pdf.BROWSERS)), None)
browser = pytest.mark.browser


# --- finishing, on a made-up site -------------------------------------------------------------------------------------

HEAD = '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8" />'


def made_up(folder: Path, body: str) -> Path:
    (folder / "_static/styles").mkdir(parents=True)
    (folder / "_static/styles/theme.css.map").write_text("{}")
    (folder / "index.html").write_text(f"{HEAD}<title>x</title></head><body><h1>x</h1>{body}</body></html>")
    return folder


def test_a_policy_names_the_inline_scripts_of_its_page_and_no_others(tmp_path: Path) -> None:
    root = made_up(tmp_path, "<script>alert('Hello, world.');</script><script src='_static/x.js'></script>")
    assert finish(root) == 1
    text = (root / "index.html").read_text()
    assert text.startswith(f'{HEAD}<meta http-equiv="Content-Security-Policy"')  # before anything that loads
    rules = dict(rule.split(" ", 1) for rule in re.findall(r'content="([^"]*)"', text)[0].split("; "))
    hashes = rules["script-src"].split()
    # the digest of this script that the documentation of the policy gives as its example
    assert "'sha256-qznLcsROx4GACP2dm0UCKCzCG+HiZ1guq6ZZDob/Tng='" in hashes
    assert hashes[:2] == ["'self'", "file:"] and len(hashes) == 4  # the other script is finish's own, for printing
    assert "unsafe" not in rules["script-src"] and rules["default-src"] == rules["object-src"] == "'none'"


def test_finishing_twice_is_finishing_once_and_takes_maps_and_handlers_away(tmp_path: Path) -> None:
    root = made_up(tmp_path, '<p id="book-pdf"></p><button onclick="window.print()">print</button>')
    digests = []
    for _ in range(2):
        finish(root)
        digests.append(hashlib.sha256((root / "index.html").read_bytes()).hexdigest())
    assert digests[0] == digests[1]
    assert not list(root.rglob("*.map")) and "onclick" not in (root / "index.html").read_text()
    assert PDF not in (root / "index.html").read_text()
    (root / PDF).write_bytes(b"%PDF")
    finish(root)
    assert f'<p id="book-pdf"><a href="{PDF}">' in (root / "index.html").read_text()
    (root / PDF).unlink()
    finish(root)
    assert hashlib.sha256((root / "index.html").read_bytes()).hexdigest() == digests[0]


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ('<b onclick="x()">b</b>', "index.html: <b> has a handler in onclick"),
        ('<img src="https://example.org/x.png">', "index.html: <img> loads https://example.org/x.png"),
        ('<a href="gone.html">gone</a>', "index.html: no file for gone.html"),
        ('<a href="#gone">gone</a>', "index.html: no anchor for #gone"),
    ],
)
def test_what_a_site_must_not_have_is_found(tmp_path: Path, body: str, problem: str) -> None:
    root = made_up(tmp_path, body)
    toc = tmp_path / "toc.yml"
    toc.write_text("root: index\nchapters:\n- file: lost\n")
    assert "index.html: no content security policy (python -m decoupled finish)" in check_site(root, toc)[1]
    finish(root)
    assert sorted(check_site(root, toc)[1]) == sorted(
        ["lost.html is in the table of contents but missing or empty", problem]
    )


def test_without_a_site_or_a_browser_the_commands_say_so_in_one_line(tmp_path: Path) -> None:
    for command, where, path in (("finish", tmp_path, None), ("pdf", made_up(tmp_path / "x", ""), "")):
        done = subprocess.run(
            [sys.executable, "-m", "decoupled", command, str(where)], capture_output=True, text=True, check=False,
            env=None if path is None else {"PATH": path},
        )  # fmt: skip
        assert done.returncode == 1 and done.stderr.count("\n") == 1 and "decoupled: " in done.stderr, done.stderr


# --- the whole site, in a browser -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    with sync_playwright() as play:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
        started = play.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield started
        started.close()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def served(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the site on a server of this machine, under /book as where it is published."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "book").symlink_to(site)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/book"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module", params=["file", "http"])
def origin(request: pytest.FixtureRequest, site: Path, served: str) -> str:
    return site.resolve().as_uri() if request.param == "file" else served


@contextlib.contextmanager
def opened(chromium: Browser, address: str, **context: Any) -> Iterator[tuple[Page, list[str], list[str]]]:
    """A page, typeset, in a browser without a past; what it complains about; and the addresses it asked for."""
    with contextlib.closing(chromium.new_context(**context)) as fresh:
        page, complaints, asked = fresh.new_page(), [], []
        page.set_default_timeout(120_000)
        page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("requestfailed", lambda request: complaints.append(f"failed: {request.url}"))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.evaluate("window.MathJax ? MathJax.startup.promise : null")
        yield page, complaints, asked


@dataclass
class Visit:
    complaints: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    overflow: dict[int, int] = field(default_factory=dict)
    ways: list[str] = field(default_factory=list)
    weight: dict[str, int] = field(default_factory=dict)


@pytest.fixture(scope="module")
def visits(chromium: Browser, site: Path, origin: str) -> dict[str, Visit]:
    """Every page of the table of contents, opened; in every width over http."""
    found = {}
    for name in NAMES if origin.startswith("file") else [*NAMES, "404"]:  # the latter's links begin at the host's top
        with opened(chromium, f"{origin}/{name}.html", viewport={"width": WIDTHS[0], "height": 800}) as (
            page,
            bad,
            asked,
        ):
            visit = found[name] = Visit(bad)
            for width in WIDTHS if origin.startswith("http") else ():
                page.set_viewport_size({"width": width, "height": 800})
                wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
                visit.overflow[width] = page.evaluate(wide)
            visit.ways = page.evaluate("[...document.querySelectorAll('.prev-next-area a')].map((way) => way.href)")
        for address in sorted(set(asked)):
            if address.startswith("data:"):
                continue
            if not address.startswith(origin):
                visit.elsewhere.append(address)
                continue
            path = unquote(urlsplit(address.removeprefix(origin)).path).lstrip("/")
            if not path.startswith("mathjax/"):
                visit.weight[path] = len(gzip.compress((site / path).read_bytes()))
    return found


@browser
def test_every_page_opens_without_a_complaint_and_asks_no_other_host(visits: dict[str, Visit]) -> None:
    assert {name: visit.complaints for name, visit in visits.items() if visit.complaints} == {}
    assert {name: visit.elsewhere for name, visit in visits.items() if visit.elsewhere} == {}


@browser
@pytest.mark.parametrize("origin", ["http"], indirect=True)
def test_no_page_scrolls_sideways(visits: dict[str, Visit], origin: str) -> None:
    assert all(visit.overflow.keys() == set(WIDTHS) for visit in visits.values())
    assert {name: visit.overflow for name, visit in visits.items() if any(visit.overflow.values())} == {}


@browser
def test_every_page_leads_to_the_one_before_and_the_one_after(visits: dict[str, Visit], origin: str) -> None:
    for n, name in enumerate(NAMES):
        around = NAMES[max(n - 1, 0) : n] + NAMES[n + 1 : n + 2]
        assert visits[name].ways == [f"{origin}/{other}.html" for other in around], name


@browser
@pytest.mark.parametrize("origin", ["http"], indirect=True)
def test_a_prose_page_weighs_less_than_300_kilobytes_beside_mathjax(visits: dict[str, Visit], origin: str) -> None:
    for name, visit in visits.items():
        print(f"{name:28} {sum(visit.weight.values()):8,}")
        if not name.startswith("notebooks/"):
            heaviest = sorted(visit.weight.items(), key=lambda item: -item[1])[:5]
            assert sum(visit.weight.values()) < 300_000, f"{name}: {heaviest}"


@browser
def test_the_policy_stops_scripts_and_pictures_that_are_not_the_sites(
    chromium: Browser, site: Path, served: str
) -> None:
    other = served.replace("127.0.0.1", "localhost")  # another origin to a browser
    inserted = f"""<script>window.inline = 1</script><img src="nowhere.png" onerror="window.handler = 1">
        <script src="{other}/intruder.js"></script><img src="{other}/_static/logo.svg?intruder"></body>"""
    text = (site / "index.html").read_text().replace("</body>", inserted)
    (site / "intruder.js").write_text("window.foreign = 1")
    try:
        for guarded in (True, False):
            bare = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
            (site / "intruder.html").write_text(text if guarded else bare)
            for origin in (served, site.resolve().as_uri()):
                with opened(chromium, f"{origin}/intruder.html") as (page, complaints, _):
                    got = page.evaluate("[window.inline, window.handler, window.foreign]")
                    shown = page.evaluate("document.querySelector('img[src*=intruder]').naturalWidth > 0")
                    refused = sum("Content Security Policy" in complaint for complaint in complaints)
                assert (got, shown) == (([None] * 3, False) if guarded else ([1] * 3, True)), origin
                assert (refused >= 4) == guarded
    finally:
        (site / "intruder.html").unlink()
        (site / "intruder.js").unlink()


@browser
def test_search_finds_a_term_and_leads_to_it(chromium: Browser, origin: str) -> None:
    with opened(chromium, f"{origin}/notebooks/grids.html") as (page, complaints, _):
        page.locator(".search-button__button:visible").first.click()
        page.keyboard.type("preconditioner")
        page.keyboard.press("Enter")
        page.wait_for_selector("ul.search li a")
        found = page.locator("ul.search li a").evaluate_all("links => links.map((link) => link.href)")
        assert any("where_it_breaks.html" in address for address in found), found
        page.locator("ul.search li a").first.click()
        page.wait_for_selector("article h1")
        assert "preconditioner" in page.locator("article").inner_text()
        assert complaints == []


@browser
def test_the_theme_button_changes_the_pictures_and_is_remembered(chromium: Browser, origin: str) -> None:
    def showing(page: Page) -> tuple[bool, bool]:
        pictures = [page.locator(f"#fig-answer img.only-{theme}") for theme in ("light", "dark")]
        drawn = [
            picture.evaluate("async (it) => { await it.decode(); return it.naturalWidth > 0; }")
            if picture.is_visible()
            else False
            for picture in pictures
        ]
        return drawn[0], drawn[1]

    with opened(chromium, f"{origin}/index.html", color_scheme="light") as (page, _, _):
        assert showing(page) == (True, False)
        for _ in range(3):  # it goes round: automatic, light, dark
            if page.evaluate("document.documentElement.dataset.theme") == "dark":
                break
            page.locator(".theme-switch-button:visible").first.click()
        assert showing(page) == (False, True)
        page.reload()
        assert showing(page) == (False, True)


@browser
def test_on_a_phone_the_menu_opens_by_a_tap_and_leads_on(chromium: Browser, origin: str) -> None:
    phone = {"viewport": {"width": 390, "height": 800}, "has_touch": True}
    with opened(chromium, f"{origin}/index.html", **phone) as (page, complaints, _):
        way = page.locator("nav.bd-links a", has_text="Where it breaks").first
        assert not way.is_visible()
        page.locator(".primary-toggle:visible").first.tap()
        way.wait_for(state="visible")
        way.tap()
        page.wait_for_url("**/where_it_breaks.html")
        assert complaints == []


@browser
@pytest.mark.parametrize("width", [390, 1366])
def test_the_keyboard_reaches_everything(chromium: Browser, site: Path, width: int) -> None:
    wanted = {".skip-link a", ".primary-toggle", ".search-button__button", ".theme-switch-button", "article a"}
    inside = """(name) => { const box = document.activeElement.getBoundingClientRect();
        return document.activeElement.matches(name) && box.width > 0 && box.height > 0 && box.left >= 0; }"""
    with opened(chromium, f"{site.as_uri()}/index.html", viewport={"width": width, "height": 800}) as (page, _, _):
        page.keyboard.press("Tab")
        assert page.evaluate(inside, ".skip-link a")
        page.keyboard.press("Enter")
        assert page.url.endswith("#main-content")
        page.reload()
        for _ in range(80):
            page.keyboard.press("Tab")
            wanted -= {name for name in wanted if page.evaluate(inside, name)}
            if not wanted:
                break
    assert wanted == set()


@browser
def test_the_print_button_prints_and_prints_dark_pages_light(chromium: Browser, site: Path) -> None:
    with opened(chromium, f"{site.as_uri()}/protocol.html", color_scheme="dark") as (page, _, _):
        page.evaluate("window.print = () => { window.printed = document.documentElement.dataset.theme; }")
        theme = "document.documentElement.dataset.theme"
        assert page.evaluate(theme) == "dark"
        page.locator("[data-print]").first.dispatch_event("click")
        assert page.evaluate("window.printed") == "dark"
        for event, expected in (("beforeprint", "light"), ("afterprint", "dark")):
            page.evaluate(f"dispatchEvent(new Event('{event}'))")
            assert page.evaluate(theme) == expected


AXE = """async () => {
  const found = [];
  for (const theme of ["light", "dark"]) {
    document.documentElement.dataset.theme = theme;
    const rules = theme === "light" ? {} : {runOnly: ["color-contrast", "link-in-text-block"]};  // the rest is the same
    const result = await axe.run({resultTypes: ["violations"], ...rules});
    for (const violation of result.violations)
      if (["serious", "critical"].includes(violation.impact))
        found.push(`${theme} ${violation.id}: ${violation.nodes.map((node) => node.target).join(", ")}`);
  }
  return found;
}"""


@browser
def test_axe_finds_nothing_serious_on_any_page_in_either_theme(chromium: Browser, site: Path) -> None:
    found = {}
    for n, name in enumerate([*NAMES, "search"]):
        with contextlib.closing(chromium.new_page(viewport={"width": (390, 1366)[n % 2], "height": 800})) as page:
            page.route("**/mathjax/**", lambda route: route.abort())  # formulas are MathJax's own affair
            page.goto(f"{site.as_uri()}/{name}.html")
            if name.startswith("notebooks/"):  # tens of thousands of coloured words, of the same kinds as elsewhere
                page.evaluate("document.querySelectorAll('pre').forEach((code) => code.replaceChildren())")
            page.evaluate(AXE_SCRIPT)
            found[name] = page.evaluate(AXE)
    assert {name: violations for name, violations in found.items() if violations} == {}
