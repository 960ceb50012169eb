"""The book as one PDF: all chapters in order, where contents and bookmarks say, and links that lead somewhere."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from bs4 import BeautifulSoup
from pypdf import PdfReader

from decoupled.pdf import BROWSERS
from decoupled.site import PDF, check_site, toc_entries

TOC = Path(__file__).parents[1] / "book/_toc.yml"
NAMES = toc_entries(yaml.safe_load(TOC.read_text()))
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def book_pdf(site: Path) -> PdfReader:
    if not any(map(shutil.which, BROWSERS)):
        pytest.skip("needs chromium")
    command = [sys.executable, "-m", "decoupled", "pdf", str(site)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return PdfReader(site / PDF)


def title_of(site: Path, name: str) -> str:
    """The heading of a built page, as plain text."""
    heading = BeautifulSoup((site / f"{name}.html").read_text(), "html.parser").select_one("article h1")
    assert heading, name
    return " ".join(heading.get_text().removesuffix("#").split())


def test_the_pdf_has_every_chapter_once_in_order_where_contents_and_bookmarks_say(
    site: Path, book_pdf: PdfReader
) -> None:
    titles = [title_of(site, name) for name in NAMES]
    marks = [entry for entry in book_pdf.outline if not isinstance(entry, list)]
    assert [mark.title for mark in marks] == ["Contents", *titles]
    starts = [book_pdf.get_destination_page_number(mark) or 0 for mark in marks]
    assert starts == sorted(set(starts)) and starts[0] == 1
    contents = " ".join(book_pdf.pages[n].extract_text() for n in range(1, starts[1]))
    for title, start in zip(titles, starts[1:], strict=True):
        words = title.replace("fi", "ﬁ").replace("fl", "ﬂ")  # drawn as one letter
        assert re.search(rf"{re.escape(words)}\s+{start + 1}\b", contents), title
        text = book_pdf.pages[start].extract_text()
        assert "".join(words.split()) in "".join(text.split()), title
        assert text.startswith(str(start + 1))  # the number of the page
    assert len(NAMES) * 3 < len(book_pdf.pages) < 400


def test_links_of_the_pdf_lead_inside_it_or_to_the_public_site(site: Path, book_pdf: PdfReader) -> None:
    places, inside = set(book_pdf.named_destinations), 0
    for page in book_pdf.pages:
        assert float(page.mediabox.width) == pytest.approx(595, abs=1)
        for link in (entry.get_object() for entry in page.get("/Annots", [])):
            if "/Dest" in link:
                assert link["/Dest"] in places
                inside += 1
            else:
                assert urlsplit(link["/A"]["/URI"]).scheme == "https", link["/A"]["/URI"]
    assert inside > len(NAMES)
    root: Any = book_pdf.trailer["/Root"]
    assert root["/MarkInfo"]["/Marked"] and root["/Lang"] == "en"


def test_the_start_page_offers_the_pdf_and_the_site_stays_whole(site: Path, book_pdf: PdfReader) -> None:
    assert f'<a href="{PDF}">' in (site / "index.html").read_text()
    assert check_site(site, TOC)[1] == [] and not (site / ".print.html").exists()


def test_nothing_is_so_wide_that_all_of_the_text_was_made_smaller(book_pdf: PdfReader) -> None:
    sizes: dict[str, float] = {}
    book_pdf.pages[1].extract_text(
        visitor_text=lambda text, outer, inner, _, size: sizes.update({text.strip(): abs(outer[3] * inner[3] * size)})
    )
    assert sizes["1. Why regularize"] == pytest.approx(13 * 0.75, abs=0.05)  # book.css: 13 pixels, in points
