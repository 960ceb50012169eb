"""The built site: finished for readers, and checked.

`finish` gives every page a content security policy and takes away what no page needs; `check_site` follows every link
and finds requests to other hosts.
"""

import base64
import hashlib
import posixpath
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

PDF = "weight-decay-decoupled.pdf"


def pages_of(root: Path) -> list[Path]:
    """The pages of the site in folder `root`; ValueError if nothing has been built there."""
    pages = [page for page in sorted(root.rglob("*.html")) if "_static" not in page.relative_to(root).parts]
    if not (root / "index.html").exists():
        raise ValueError(f"{root} has no index.html: build the book first (make book)")
    return pages


# --- finishing --------------------------------------------------------------------------------------------------------

REPAIRS = {
    'onclick="window.print()"': "data-print",  # no policy without 'unsafe-inline' runs a handler in an attribute
    '<div role="list" class="citation-list">': '<div class="citation-list">',  # its children have no role of a list
}
# What replaces the handler; and a page printed from the dark theme would be light letters on white paper.
PRINT_SCRIPT = """<script>{
  const page = document.documentElement.dataset;
  let theme = page.theme;
  addEventListener("beforeprint", () => { theme = page.theme; page.theme = "light"; });
  addEventListener("afterprint", () => { page.theme = theme; });
  for (const button of document.querySelectorAll("[data-print]")) button.addEventListener("click", () => print());
}</script>"""
SEARCHING = re.compile(r'\s*<script src="[^"]*(?:_static/searchtools|_static/language_data|searchindex)\.js"></script>')
CHARSET = '<meta charset="utf-8" />'
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
DOWNLOAD = re.compile(r'(<(?:span|p|div)[^>]*\bid="book-pdf"[^>]*>)(.*?)(</(?:span|p|div)>)', re.S)


def finish(root: Path) -> int:
    """Make a built site ready for readers, in place; a second time changes nothing. Returns the number of pages.

    Every page gets a policy by which a browser runs no script but the site's own and asks no other host; source maps
    and icons that no page shows go; the element with id `book-pdf` offers the book's PDF where `write_pdf` has made it.
    """
    pages = pages_of(root)
    for source_map in root.rglob("*.map"):
        source_map.unlink()
    drop_unused_icons(root, "".join(page.read_text(encoding="utf-8") for page in pages))
    options = root / "_static/documentation_options.js"
    if options.exists():  # a browser that reads files refuses the search page the other pages, for its excerpts
        text = options.read_text(encoding="utf-8")
        excerpts = text.replace("SEARCH_SUMMARY: true", 'SEARCH_SUMMARY: location.protocol !== "file:"')
        options.write_text(excerpts, encoding="utf-8")
    offer = ""
    if (root / PDF).exists():
        offer = f'<a href="{PDF}">The whole book as a PDF</a> ({(root / PDF).stat().st_size / 1e6:.1f} MB)'
    for page in pages:
        before = page.read_text(encoding="utf-8")
        text = before
        for fault, repair in REPAIRS.items():
            text = text.replace(fault, repair)
        # the index of the whole book is for the page that searches it
        if page.name != "search.html" and "search_as_you_type = false" in text:
            text = SEARCHING.sub("", text)
        # pictures for dark pages: fetched when one is shown, not beside the light ones on every page
        text = re.sub(r'(<img [^>]*class="only-dark")(?! loading)', r'\1 loading="lazy"', text)
        if PRINT_SCRIPT not in text:
            head, end, tail = text.rpartition("</body>")
            text = head + PRINT_SCRIPT + end + tail
        if page == root / "index.html":
            text = DOWNLOAD.sub(lambda found: found[1] + offer + found[3], text)
        if CHARSET not in text:
            raise ValueError(f"{page} has no {CHARSET} before which a policy could stand")
        text = POLICY.sub("", text).replace(CHARSET, CHARSET + policy(text), 1)
        if text != before:
            page.write_text(text, encoding="utf-8")
    return len(pages)


def policy(text: str) -> str:
    """The content security policy, as a meta element, that the page `text` satisfies and that allows nothing more."""
    from bs4 import BeautifulSoup

    inline = {script.get_text() for script in BeautifulSoup(text, "html.parser").find_all("script", src=False)}
    digests = (base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() for code in inline)
    hashes = "".join(f" 'sha256-{digest}'" for digest in sorted(digests))
    # Where the site is opened as files, Firefox takes 'self' for nothing at all; a page that came over http may load no
    # file, so that `file:` allows it nothing.
    own = "'self' file:"
    rules = (
        "default-src 'none'", f"script-src {own}{hashes}",
        f"style-src {own} 'unsafe-inline'",  # MathJax and the theme write styles
        f"img-src {own} data:", f"font-src {own} data:", "connect-src 'self'", "base-uri 'none'", f"form-action {own}",
        "object-src 'none'",
    )  # fmt: skip
    return f'<meta http-equiv="Content-Security-Policy" content="{"; ".join(rules)}">'


ICON = re.compile(r'"?([a-z0-9-]+)"?:\[\d+,\d+,\[([^\]]*)\],"([0-9a-f]+)",(?:"[^"]*"|\[[^\]]*\])\],?')
RULE = re.compile(r'((?:\.fa-[a-z0-9-]+:+before,?)+)\{content:"[^"]*"\}')
NAMED = re.compile(r"\bfa-([a-z0-9-]+)")


def drop_unused_icons(root: Path, pages: str) -> None:
    """Keep of Font Awesome (0.7 MB compressed, on every page) the icons that the site names."""
    from fontTools import subset, ttLib  # type: ignore[import-untyped]

    static = root / "_static"
    script = static / "scripts/fontawesome.js"
    if not script.exists():
        return
    scripts = (path.read_text(encoding="utf-8") for path in static.rglob("*.js") if path != script)
    named = set(NAMED.findall("".join([pages, *scripts])))
    characters = set()

    def keep(icon: re.Match[str]) -> str:
        if named.isdisjoint([icon[1], *re.findall(r'"([^"]+)"', icon[2])]):
            return ""
        characters.add(int(icon[3], 16))
        return icon[0]

    script.write_text(ICON.sub(keep, script.read_text(encoding="utf-8")), encoding="utf-8")
    for sheet in static.rglob("*.css"):  # rules that draw an icon themselves, as the titles of notices do
        text = sheet.read_text(encoding="utf-8")
        rules = "".join(body for names, body in re.findall(r"([^{}]*)\{([^{}]*)\}", text) if ".fa-" not in names)
        characters |= {int(code, 16) for code in re.findall(r"\\([ef][0-9a-f]{3})\b", rules)}
        characters |= {ord(letter) for letter in rules if "\ue000" <= letter <= "\uf8ff"}
        text = re.sub(r'url\([^)]*/fa-[^)]*\.woff2\) format\("woff2"\),', "", text)
        text = RULE.sub(lambda rule: "" if named.isdisjoint(NAMED.findall(rule[1])) else rule[0], text)
        sheet.write_text(text, encoding="utf-8")
    for font in static.glob("vendor/fontawesome/webfonts/fa-*.ttf"):
        font.with_suffix(".woff2").unlink(missing_ok=True)  # to write one needs a compressor that Python lacks
        face, subsetter = ttLib.TTFont(font, recalcTimestamp=False), subset.Subsetter()
        subsetter.populate(unicodes=characters)
        subsetter.subset(face)
        face.save(font)


# --- checking ---------------------------------------------------------------------------------------------------------

LOADING = ("script", "img", "iframe", "source", "video", "audio", "embed")
LOADING_RELATIONS = {"stylesheet", "preload", "modulepreload", "icon", "preconnect", "dns-prefetch", "prefetch"}


def check_site(root: Path, toc: Path = Path("book/_toc.yml")) -> tuple[int, list[str]]:
    """Pages found and problems, one line each: missing pages of the toc, dead links and anchors, requests elsewhere,
    pages without a policy or with handlers in attributes, which the policy would not run."""
    import yaml
    from bs4 import BeautifulSoup

    pages = {page.resolve(): BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser") for page in pages_of(root)}
    anchors = {page: {tag["id"] for tag in soup.find_all(id=True)} for page, soup in pages.items()}
    problems = [
        f"{name}.html is in the table of contents but missing or empty"
        for name in toc_entries(yaml.safe_load(toc.read_text()))
        if not ((page := (root / f"{name}.html").resolve()) in pages and pages[page].find("h1"))
    ]
    start = pages[(root / "index.html").resolve()].find("link", rel="canonical")
    base = posixpath.dirname(urlsplit(str(start["href"])).path) if start else ""
    for page, soup in pages.items():
        where = page.relative_to(root.resolve()).as_posix()
        if soup.find("meta", attrs={"http-equiv": "Content-Security-Policy"}) is None:
            problems.append(f"{where}: no content security policy (python -m decoupled finish)")
        for tag in soup.find_all(True):
            problems += [
                f"{where}: <{tag.name}> has a handler in {name}" for name in tag.attrs if name.startswith("on")
            ]
            relations = set(tag.get_attribute_list("rel"))
            loads = tag.name in LOADING or (tag.name == "link" and LOADING_RELATIONS & relations)
            for url in (str(tag[name]) for name in ("href", "src") if tag.get(name)):
                parts, folder = urlsplit(url), page.parent
                if parts.scheme or parts.netloc:
                    if loads and parts.scheme != "data":
                        problems.append(f"{where}: <{tag.name}> loads {url}")
                    continue
                if parts.path.startswith("/"):  # from the host's top, as the page for addresses that do not exist
                    parts, folder = parts._replace(path=parts.path.removeprefix(base).lstrip("/")), root
                target = (folder / unquote(parts.path)).resolve() if parts.path else page
                target = target / "index.html" if target.is_dir() else target
                if not target.exists():
                    problems.append(f"{where}: no file for {url}")
                elif parts.fragment and target in anchors and unquote(parts.fragment) not in anchors[target]:
                    problems.append(f"{where}: no anchor for {url}")
    return len(pages), problems


def toc_entries(node: Any) -> list[str]:
    """The names of all pages in a table of contents as read from its YAML, in order."""
    if isinstance(node, list):
        return [entry for item in node for entry in toc_entries(item)]
    if isinstance(node, dict):
        own = [str(node[name]) for name in ("root", "file") if name in node]
        return own + toc_entries([value for value in node.values() if isinstance(value, list)])
    return []
