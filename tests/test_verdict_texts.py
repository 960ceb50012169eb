"""Verdicts as text and panels: every claim in every table, and columns that may be missing."""

import pandas as pd
import pytest

from decoupled import report, store, verdicts

ROW = {
    "id": "C1", "verdict": "inconclusive", "statement": "A is B.", "paper": "-0.78 pp", "ours": "-1.00 pp",
    "interval": "[-2.00, +0.10]", "n": 4, "rule": "r", "note": "x", "paper_note": "y", "value": -1.0, "low": -2.0,
    "high": 0.1, "unit": " pp",
}  # fmt: skip
MORE = {"experiment": "restarts", "paper_verdict": "reproduced", "settle": "9 seeds"}


def table(**changes) -> pd.DataFrame:
    return pd.DataFrame([{**ROW, **changes}])


def lines_of(judged: pd.DataFrame, full: bool = False) -> list[str]:
    """The rows of the table of claims."""
    return [line for line in verdicts.as_table(judged, full).splitlines() if line.startswith("| **")]


def test_the_verdict_is_a_word_in_every_row() -> None:
    judged = report.judge(store.as_frame([]), "cpu", report.load_paper())
    lines = lines_of(judged)
    assert len(lines) == len(judged)
    assert all(f"`{row.verdict}`" in line for row, line in zip(judged.itertuples(), lines, strict=True))
    assert verdicts.effects(judged) == {}


def test_a_row_shows_numbers_with_true_minus_signs_and_leads_to_its_chapter() -> None:
    [line] = lines_of(table())
    assert line == "| **C1** {bdg-warning}`inconclusive` | A is B. | −0.78 pp | −1.00 pp [−2.00, +0.10], n = 4 |"
    [full] = lines_of(table(**MORE), full=True)
    assert "A is B. ({doc}`restarts </notebooks/restarts>`) | −0.78 pp, *reproduced* |" in full
    assert "({doc}`three schedules </notebooks/schedules>`)" in verdicts.as_table(table(), full=True)
    assert lines_of(table(n=0))[0].endswith("| – |")
    assert "| not shown |" in verdicts.as_table(table(paper="not shown", paper_verdict="not shown"), full=True)


def test_of_several_parts_the_one_that_decides_is_named() -> None:
    split = table(**MORE, part="step drops", paper_part="cosine annealing")
    [line] = lines_of(split)
    assert line.endswith("| −0.78 pp (cosine annealing) | −1.00 pp [−2.00, +0.10], n = 4 (step drops) |")
    assert "*The paper:* −0.78 pp (cosine annealing), *reproduced*." in verdicts.of_chapter(split, "restarts")
    [panel] = verdicts.effects(split).values()
    assert panel["source"].tolist() == ["ours"]  # not beside a number about something else


def test_in_short_every_claim_stands_once_under_its_verdict_and_leads_to_its_rule() -> None:
    judged = report.judge(store.as_frame([]), "cpu", report.load_paper())
    judged.loc[judged["id"].isin(["C6", "C7"]), "verdict"] = "reproduced"
    judged.loc[judged["id"] == "C1", "verdict"] = "contradicted"
    text, rules = verdicts.in_short(judged), verdicts.rules(judged)
    assert (
        f"Of {len(judged)} claims, **2** reproduced, **0** inconclusive, **1** contradicted and **{len(judged) - 3}**"
        in text
    )
    for name in judged["id"]:
        assert text.count(f"[{name}](#claim-{name.lower()})") == 1 == rules.count(f"[{name}]{{#claim-{name.lower()}}}")
    [grids] = [line for line in text.splitlines() if "notebooks/grids" in line]
    assert grids.split(" | ")[1] == "[C6](#claim-c6) [C7](#claim-c7)"
    [schedules] = [line for line in text.splitlines() if "notebooks/schedules" in line]
    assert schedules.split(" | ")[1:4] == ["", "", "[C1](#claim-c1)"]


def test_open_claims_say_what_would_settle_them() -> None:
    assert verdicts.open_questions(table()) == ""
    assert verdicts.open_questions(table(**MORE)) == "- **C1**, inconclusive: 9 seeds\n"
    assert "every claim is settled" in verdicts.open_questions(table(**MORE | {"verdict": "reproduced"}))


def test_a_chapter_has_its_own_claims_only() -> None:
    text = verdicts.of_chapter(table(**MORE), "restarts")
    assert "C1 {bdg-warning}`inconclusive` A is B.\n: *The paper:* −0.78 pp, *reproduced*." in text
    assert "*What would settle it:* 9 seeds." in text
    assert "No claim" in verdicts.of_chapter(table(**MORE), "grids")
    assert "C1" in verdicts.of_chapter(table(), "schedules")  # without the column, by its number


@pytest.mark.parametrize(
    ("paper", "sources"), [("-0.78 pp", ["paper", "ours"]), ("13 times", ["ours"]), ("not shown", ["ours"])]
)
def test_the_papers_number_is_beside_ours_only_in_the_same_unit(paper: str, sources: list[str]) -> None:
    panels = verdicts.effects(table(paper=paper))
    assert list(panels) == ["percentage points of test error"]
    assert panels["percentage points of test error"]["source"].tolist() == sources


def test_values_for_prose() -> None:
    assert verdicts.values(table())["C1"] == {
        "verdict": "inconclusive", "ours": "−1.00 pp [−2.00, +0.10], n = 4", "paper": "−0.78 pp", "n": 4,
    }  # fmt: skip
