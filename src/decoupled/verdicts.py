"""Verdicts for readers: the table that `report.judge` gives, as MyST text and as the panels of a forest plot.

Nothing here judges. Columns that a table may lack (paper_verdict, settle, experiment) are shown where they are there.
"""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from decoupled import claims, report, store

BADGES = {"reproduced": "success", "contradicted": "danger", "inconclusive": "warning"}
SETTLED = ("reproduced", "contradicted")
CHAPTERS = {  # where an experiment is shown
    "grids": "the four grids",
    "schedules": "three schedules",
    "generalization": "long runs",
    "fixed_lr": "a fixed rate",
    "normalized": "longer training",
    "sgdr": "SGDR",
    "restarts": "restarts",
    "tricks": "advice",
}
QUESTIONS = {  # what the claims of an experiment come to, in the order of the book
    "schedules": "Is AdamW better than Adam?",
    "grids": "Can learning rate and decay be tuned one at a time?",
    "generalization": "Does a long run generalize better?",
    "fixed_lr": "Can Adam make up for it with patience?",
    "normalized": "Does one normalized decay fit all budgets?",
    "sgdr": "Do warm restarts help SGD?",
    "restarts": "Do they help AdamW and SGDW?",
    "tricks": "Do the rules of thumb hold?",
}
VERDICTS = ("reproduced", "inconclusive", "contradicted", claims.NOT_TESTED)
UNITS = {  # of the panels of a forest plot
    " pp": "percentage points of test error",
    "": "slope or exponent (logarithm on logarithm)",
    " %": "per cent",
    " times": "ratio",
}
SCHEDULE_CLAIMS = ("C1", "C2", "C3", "C4")


def experiment_of(row: Mapping[Any, Any]) -> str:
    """The experiment that a claim is tested on: as judged, or by the numbers of the first claims."""
    return str(row.get("experiment") or ("schedules" if row["id"] in SCHEDULE_CLAIMS else "grids"))


def chapter_link(experiment: str) -> str:
    """A link, from any page, to the chapter of an experiment."""
    return f"{{doc}}`{CHAPTERS.get(experiment, experiment)} </notebooks/{experiment}>`"


def badge(verdict: str) -> str:
    """A verdict as a word on a colour that only repeats it."""
    return f"{{bdg-{BADGES.get(verdict, 'light')}}}`{verdict}`"


def _signed(text: Any) -> str:
    return str(text).replace("-", "−")


def _part(row: Mapping[Any, Any], column: str) -> str:
    """Of a claim with several parts, the one that decides, whose number is shown."""
    return f" ({row[column]})" if row.get(column) else ""


def _ours(row: Mapping[Any, Any]) -> str:
    return _signed(f"{row['ours']} {row['interval']}, n = {row['n']}") + _part(row, "part") if row["n"] else "–"


def _theirs(row: Mapping[Any, Any], full: bool = True) -> str:
    """The paper's number, and what it comes to by our rule where that says more."""
    number, verdict = _signed(row["paper"]) + _part(row, "paper_part"), str(row.get("paper_verdict") or "")
    return f"{number}, *{verdict}*" if full and verdict and verdict != row["paper"] else number


def anchor(row: Mapping[Any, Any]) -> str:
    """A link, from any page, to the line with a claim's rule in the chapter of verdicts."""
    return f"[{row['id']}](#claim-{str(row['id']).lower()})"


def in_short(judged: pd.DataFrame) -> str:
    """How many claims got which verdict, in a sentence, and which of each question, as a MyST table."""
    found = judged["verdict"].value_counts()
    counts = [f"**{found.get(verdict, 0)}** {verdict}" for verdict in VERDICTS]
    lines = [f"Of {len(judged)} claims, {', '.join(counts[:-1])} and {counts[-1]}.\n"]
    lines += [
        ":::{table} Claims by question and verdict; each leads to its rule and numbers",
        ":name: tab-in-short",
        "",
    ]
    lines += ["| question | " + " | ".join(badge(verdict) for verdict in VERDICTS) + " |", "| --- " * 5 + "|"]
    for experiment, question in QUESTIONS.items():
        mine = [row for row in judged.to_dict("records") if experiment_of(row) == experiment]
        cells = [" ".join(anchor(row) for row in mine if row["verdict"] == verdict) for verdict in VERDICTS]
        lines.append(f"| {{doc}}`{question} </notebooks/{experiment}>` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n:::\n"


def as_table(judged: pd.DataFrame, full: bool = False) -> str:
    """Claims and verdicts as a MyST table. full: with the chapter, and the verdict on the paper's own numbers."""
    lines = ["::::{container} claims", "", "| claim | what it says | paper | this book |", "| --- | --- | --- | --- |"]
    for row in judged.to_dict("records"):
        head = f"**{row['id']}** {badge(row['verdict'])}"
        says = f"{row['statement']} ({chapter_link(experiment_of(row))})" if full else row["statement"]
        lines.append(f"| {head} | {says} | {_theirs(row, full)} | {_ours(row)} |")
    return "\n".join((*lines, "", "::::")) + "\n"


def open_questions(judged: pd.DataFrame) -> str:
    """What would settle the claims that are inconclusive or not tested, as a MyST list; '' without that column."""
    if "settle" not in judged:
        return ""
    rows = judged[~judged["verdict"].isin(SETTLED) & judged["settle"].fillna("").ne("")]
    if rows.empty:
        return "Nothing: every claim is settled at this profile.\n"
    return "".join(f"- **{row.id}**, {row.verdict}: {row.settle}\n" for row in rows.itertuples())


def of_chapter(judged: pd.DataFrame, experiment: str) -> str:
    """The claims of one chapter as MyST text: what the paper says, what is seen here, and what remains open."""
    parts = []
    for row in judged.to_dict("records"):
        if experiment_of(row) != experiment:
            continue
        unsettled = row.get("settle") and row["verdict"] not in SETTLED
        settle = f"\n: *What would settle it:* {row['settle']}." if unsettled else ""
        parts.append(
            f"{row['id']} {badge(str(row['verdict']))} {row['statement']}\n"
            f": *The paper:* {_theirs(row)}. *This book:* {_ours(row)}.\n"
            f": *Rule:* {row['rule']}.{settle}\n"
        )
    return "\n".join(parts) or "No claim is judged on these runs alone; the tables above are all there is.\n"


def effects(judged: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Every tested claim's number with its interval, and the paper's where it has the same unit, by unit.

    These are the panels of `curves.forest`, by the label of their axis. A claim that was not tested is left out, and so
    is the paper's number where another part of the claim decides there.
    """
    lines = []
    for row in judged[judged["value"].notna()].to_dict("records"):
        shared = {"label": row["id"], "unit": row["unit"], "says": row["verdict"]}
        number, space, unit = str(row["paper"]).partition(" ")
        if f"{space}{unit}" == row["unit"] and row.get("part") == row.get("paper_part"):
            theirs = pd.to_numeric(number, errors="coerce")
            lines.append({**shared, "source": "paper", "value": theirs, "low": math.nan, "high": math.nan})
        lines.append({**shared, "source": "ours", "value": row["value"], "low": row["low"], "high": row["high"]})
    frame = pd.DataFrame(lines, columns=["label", "unit", "says", "source", "value", "low", "high"])
    return {UNITS.get(str(unit), str(unit).strip()): part for unit, part in frame.groupby("unit", sort=False)}


def values(judged: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Verdict, our number and the paper's by claim, for prose."""
    return {
        str(row["id"]): {
            "verdict": row["verdict"],
            "ours": _ours(row),
            "paper": _signed(row["paper"]),
            "n": int(row["n"]),
        }
        for row in judged.to_dict("records")
    }


def rules(judged: pd.DataFrame) -> str:
    """Every claim with its rule, our numbers and the paper's, as a MyST definition list."""
    parts = []
    for row in judged.itertuples():
        parts.append(
            f"[{row.id}]{{#claim-{str(row.id).lower()}}}, *{row.verdict}*. {row.statement}\n"
            f": *Rule:* {row.rule}.\n"
            f": *This book:* {row.note}.\n"
            f": *The paper's figures:* {row.paper_note}.\n"
        )
    return "\n".join(parts)


def own(results: store.Results, paper: pd.DataFrame) -> str:
    """This machine's verdicts as MyST text, or a sentence that there are none."""
    if not results.local_profile:
        return report.NOTHING_HERE
    judged, origin = report.judge(results.local, results.local_profile, paper), store.origin(results.local)
    return (
        f"On this machine: profile {results.local_profile}, {origin['dataset']}, {origin['runs']} runs, seeds "
        f"{origin['seeds']}, {origin['hardware']}, commit {origin['commit']}.\n\n{as_table(judged)}"
    )
