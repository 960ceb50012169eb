"""The book as one PDF: the site's pages joined into one document and printed by Chromium."""

import posixpath
import shutil
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit

from decoupled.site import PDF, pages_of

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
DROPPED = ".headerlink, .only-dark, .toctree-wrapper, details.hide, details.made-by, script, style, button, #book-pdf"
# Words of code that have the colour of the text: every element left takes a place of its own in a tagged PDF.
PLAIN = "a.image-reference, .highlight :is(.n, .nn, .p, .w)"
POINTING = ("for", "aria-labelledby", "aria-describedby")
# The text is as wide as the page between its margins; what is wider, equations and tables, is made smaller.
WIDTH = 660  # CSS pixels: A4 less 2 x 17.7 mm, at 96 per inch
FIT = """async () => {
  if (window.MathJax) await MathJax.startup.promise;
  await document.fonts.ready;
  await Promise.all([...document.images].map((image) => image.decode().catch(() => {})));
  for (const wide of document.querySelectorAll("table, mjx-container[display]")) {
    const room = wide.parentElement.clientWidth, needed = Math.max(wide.scrollWidth, wide.offsetWidth);
    if (needed > room) wide.style.zoom = Math.max(0.5, (room - 1) / needed);
  }
}"""

NUMBER = """(pages) => {
  for (const [name, number] of Object.entries(pages))
    document.querySelector(`.print-contents a[href="#${name}"] .print-page`).textContent = number + 1;
}"""
HEADINGS = """() => [...document.querySelectorAll("h1, h2, h3, h4, h5, h6")].map((heading) => heading.textContent)"""


def browser() -> str:
    """The path of a Chromium; RuntimeError if there is none."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise RuntimeError("a PDF needs Chromium, which is not installed (Debian, Ubuntu: apt-get install chromium)")
    return found


def write_pdf(root: Path) -> Path:
    """Print the site as one A4 PDF with contents and bookmarks, at the top of the site; returns its path."""
    from playwright.sync_api import sync_playwright
    from pypdf import PdfWriter

    pages_of(root)
    executable = browser()
    source, part = root / ".print.html", root / f".{PDF}.part"
    text, names = one_page(root)
    source.write_text(text, encoding="utf-8")
    try:
        with sync_playwright() as play:
            chromium = play.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
            # A draft, faster without what takes long to draw, tells the numbers of the contents. Each print gets a page
            # of its own: Chromium breaks the second print of one page elsewhere than the first.
            page = _loaded(chromium, source)
            page.add_style_tag(content="img, mjx-container, pre { visibility: hidden; }")
            page.pdf(path=part, prefer_css_page_size=True)
            for _ in range(3):  # once, unless the draft broke elsewhere
                numbers = _starts(part, names)
                page.close()
                page = _loaded(chromium, source)
                page.evaluate(NUMBER, numbers)
                page.pdf(path=part, prefer_css_page_size=True, print_background=True, outline=True, tagged=True)
                if _starts(part, names) == numbers:
                    break
            else:
                raise RuntimeError("the page numbers of the contents do not settle")
            headings = page.evaluate(HEADINGS)
            chromium.close()
        whole = PdfWriter(part, incremental=True)
        _name_bookmarks(whole, headings)
        whole.write(root / PDF)
    finally:
        source.unlink(missing_ok=True)
        part.unlink(missing_ok=True)
    return root / PDF


def _loaded(chromium: Any, source: Path) -> Any:
    """The document in a page as wide as the paper's text, typeset and with nothing wider than it."""
    page = chromium.new_page(viewport={"width": WIDTH, "height": 1000})
    page.set_default_timeout(300_000)  # milliseconds: ten times as long as an idle machine takes
    page.emulate_media(media="print", color_scheme="light")
    page.goto(source.resolve().as_uri())
    page.evaluate(FIT)
    return page


def _starts(printed: Path, names: list[str]) -> dict[str, int | None]:
    """The first page of every chapter, counted from 0."""
    from pypdf import PdfReader

    reader = PdfReader(printed)
    return {name: reader.get_destination_page_number(reader.named_destinations[f"/{name}"]) for name in names}


def _name_bookmarks(whole: Any, headings: list[str]) -> None:
    """Chromium names bookmarks by the letters that it draws: without formulas, twice at the top of a page."""
    from pypdf.generic import NameObject, TextStringObject

    def below(bookmark: Any) -> Iterator[Any]:
        while bookmark is not None:
            entry = bookmark.get_object()
            yield entry
            yield from below(entry.get("/First"))
            bookmark = entry.get("/Next")

    for entry, heading in zip(below(whole.root_object["/Outlines"]["/First"]), headings, strict=True):
        entry[NameObject("/Title")] = TextStringObject(" ".join(heading.split()))


def one_page(root: Path) -> tuple[str, list[str]]:
    """The site's pages in the order of its menu as one HTML document for the top of the site, and its chapters' ids."""
    from bs4 import BeautifulSoup

    def read(address: str) -> Any:
        return BeautifulSoup((root / address).read_text(encoding="utf-8"), "html.parser")

    index = read("index.html")
    menu = [
        (tag.get_text(strip=True), "" if tag.name == "p" else tag["href"].replace("#", "index.html"))
        for tag in index.select("nav.bd-links p.caption, nav.bd-links a.internal")
    ]
    names = {address: address.removesuffix(".html").replace("/", "-") for _, address in menu if address}
    head, chapters = {}, []  # a dictionary keeps the order and one of each
    for address, name in names.items():
        soup = read(address)
        article = soup.select_one("article.bd-article")
        if article is None:
            raise ValueError(f"{root / address} has no article")
        for tag in soup.select('head link[rel="stylesheet"], head script'):
            if tag.name == "link" or "mathjax" in f"{tag.get('src')} {tag.string}".lower():
                for link in {"href", "src"} & tag.attrs.keys():
                    tag[link] = _moved(tag[link], address, {}, "")
                head[str(tag)] = True
        _adopt(article, address, names, str(soup.select_one('link[rel="canonical"]')["href"]))
        chapters.append(f'<section class="print-chapter" id="{name}">{article.decode_contents()}</section>')
    contents = [
        f'<li><a href="#{names[address]}">{escape(text)}<span class="print-page"></span></a></li>'
        if address
        else f'<li class="print-part">{escape(text)}</li>'
        for text, address in menu
    ]
    author = index.select_one(".component-author")
    about = index.select_one('meta[name="description"]')
    title, home = index.select_one("article h1"), index.select_one('link[rel="canonical"]')["href"]
    title.select_one(".headerlink").extract()
    text = TEMPLATE.format(
        title=escape(title.get_text()), about=escape(about["content"]), author=escape(author.get_text(strip=True)),
        home=home.removesuffix("index.html"), head="".join(head), contents="".join(contents),
        chapters="".join(chapters),
    )  # fmt: skip
    return text, list(names.values())


def _adopt(article: Any, address: str, names: dict[str, str], public: str) -> None:
    """Make one page's article part of the whole: ids of its own, links inside the document, nothing that folds."""
    for tag in article.select(DROPPED):
        tag.decompose()
    for cell in article.select("div.cell"):
        if not cell.get_text(strip=True) and cell.img is None:
            cell.decompose()  # nothing was left of it; between a heading and its figure it lets a page break in
    for tag in article.select(PLAIN):
        tag.unwrap()
    article.smooth()
    for tag in article.find_all(True):
        if tag.name == "details":
            tag["open"] = ""
        for name in ("id", *POINTING):
            if name in tag.attrs:
                tag[name] = " ".join(f"{names[address]}--{word}" for word in tag[name].split())
        for name in ("href", "src"):
            if name in tag.attrs:
                tag[name] = _moved(tag[name], address, names, public if name == "href" else "")


def _moved(url: str, address: str, names: dict[str, str], public: str) -> str:
    """`url`, as written on page `address`, for the one document: inside it, elsewhere, at the site's public address."""
    parts = urlsplit(url)
    if parts.scheme or parts.netloc:
        return url
    folder, inside = posixpath.split(address)
    path = posixpath.normpath(posixpath.join(folder, unquote(parts.path) or inside))
    if path in names:
        return f"#{names[path]}--{parts.fragment}" if parts.fragment else f"#{names[path]}"
    return urljoin(public, url) if public else quote(path)


# The numbers of pages stand in margin boxes, so that the title page can do without.
TEMPLATE = """<!DOCTYPE html>
<html lang="en" data-theme="light" data-mode="light"><head><meta charset="utf-8"><title>{title}</title>{head}</head>
<body class="print-book"><div class="print-title"><p class="print-name">{title}</p><p>{about}</p><p>{author}</p>
<p><a href="{home}">{home}</a></p></div>
<nav class="print-contents"><h1>Contents</h1><ul>{contents}</ul></nav>
<div class="bd-article-container">{chapters}</div></body></html>
"""
