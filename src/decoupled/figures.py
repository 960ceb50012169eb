"""Pictures from data frames: heat maps beside the paper's, learning curves, intervals.

Every figure is saved twice, for light and for dark pages, as SVG with a transparent background and without a date, so
that equal results give equal files. Colours are those of a colour-blind safe map; meaning never rests on colour alone
(best cells carry rings and numbers, diverged cells a cross, lower bounds a > sign).
"""

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

NAMES = {"sgd": "SGD with L2", "sgdw": "SGDW", "adam": "Adam with L2", "adamw": "AdamW"}
SCHEDULE_NAMES = {"fixed": "fixed rate", "step": "step drops", "cosine": "cosine annealing"}
INK = {"light": "#1b1f24", "dark": "#e6e8eb"}
COLOURS = {"paper": "#b35806", "ours": "#2166ac"}  # legible on white and on near-black
MAP = "cividis_r"
REACH = {"paper": 1.8, "ours": 1.3}  # end of the colour scale over the best error; the paper's own ends there


@contextmanager
def theme(name: str):
    """Matplotlib settings for pages of one theme: light or dark."""
    ink = INK[name]
    settings: dict[Any, Any] = {
        "font.size": 9, "axes.titlesize": 9.5, "axes.spines.top": False, "axes.spines.right": False,
        "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
        "text.color": ink, "axes.labelcolor": ink, "axes.edgecolor": ink, "xtick.color": ink, "ytick.color": ink,
        "svg.hashsalt": "decoupled", "svg.fonttype": "path", "figure.constrained_layout.use": True,
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        yield


def save(draw: Callable[[], Figure], name: str, folder: Path | str = "book/generated") -> Figure:
    """Draw once per theme into NAME-light.svg and NAME-dark.svg; returns the light figure for display."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    shown = None
    for variant in ("dark", "light"):
        with theme(variant):
            shown = draw()
            shown.savefig(Path(folder) / f"{name}-{variant}.svg", metadata={"Date": None})
            plt.close(shown)
    assert shown is not None
    return shown


def number(x: float) -> str:
    """A short label for a learning rate or a decay: 0, 0.05, 1/512 is 1.95e-3."""
    if x == 0:
        return "0"
    text = f"{x:.3g}" if 0.01 <= x < 100 else f"{x:.2e}".replace("e-0", "e-")
    return text.replace(".00e", "e").replace("0e-", "e-") if "e" in text else text


def heat_map(ax: Axes, errors: pd.DataFrame, *, title: str, reach: float) -> None:
    """One grid of test errors (per cent): rows learning rates, columns decays, the best cells ringed.

    errors: learning rates (index) x decays (columns); NaN where a run diverged or is missing, +inf where it is only
    known to lie beyond the end of the scale, as in the paper's clipped figures. reach: where the colour scale ends, in
    units of the best error.
    """
    errors = errors.sort_index(ascending=False)
    values = errors.to_numpy(float)
    known = values[np.isfinite(values)]
    ax.set_title(title, loc="left")
    ax.set_xticks(range(len(errors.columns)), [number(float(x)) for x in errors.columns], rotation=60, ha="right")
    ax.set_yticks(range(len(errors.index)), [number(float(x)) for x in errors.index])
    ax.tick_params(length=0, labelsize=7.5)
    for side in ax.spines.values():
        side.set_visible(False)
    if not len(known):
        ax.text(0.5, 0.5, "no runs", transform=ax.transAxes, ha="center")
        return
    low, beyond = known.min(), np.isposinf(values)
    high = max(reach * low, low + 1e-9)
    shown = np.where(beyond, high, values)
    image = ax.imshow(shown, cmap=MAP, norm=Normalize(low, high, clip=True), aspect="auto")
    bar = ax.figure.colorbar(
        image, ax=ax, fraction=0.05, pad=0.02, extend="max" if (shown >= high).any() else "neither"
    )
    bar.ax.tick_params(labelsize=7.5, length=2)
    bar.outline.set_visible(False)
    order = np.argsort(np.where(np.isfinite(values), values, np.inf), axis=None)[
        : 10 if values.size >= 80 else 3
    ]  # ten, as in the paper
    for rank, flat in enumerate(order):
        row, column = np.unravel_index(flat, values.shape)
        if not np.isfinite(values[row, column]):
            break
        ax.plot(column, row, "o", ms=9, mfc="none", mec="black", mew=2.4)
        ax.plot(column, row, "o", ms=9, mfc="none", mec="#ff5a36" if rank == 0 else "white", mew=1.2)
        if rank == 0:  # the best is also marked without colour
            ax.plot(column, row, "o", ms=3.5, mfc="#ff5a36", mec="black", mew=0.8)
    for row, column in zip(*np.nonzero(np.isnan(values)), strict=True):
        ax.plot(column, row, "x", ms=5, color=plt.rcParams["text.color"], mew=1)
    if 0 in errors.columns:
        ax.axvline(0.5, color=plt.rcParams["axes.edgecolor"], lw=1.2)


def heat_map_pairs(rows: Sequence[tuple[str, pd.DataFrame | None, pd.DataFrame]], ours: str) -> Figure:
    """One row per (name, the paper's grid or None, our grid): the paper on the left, ours on the right."""
    columns = 2 if any(paper is not None for _, paper, _ in rows) else 1
    figure, axes = plt.subplots(len(rows), columns, figsize=(3.7 * columns, 2.75 * len(rows)), squeeze=False)
    for line, (name, paper, mine) in zip(axes, rows, strict=True):
        if paper is not None:
            heat_map(line[0], paper, title=f"{name}: the paper", reach=REACH["paper"])
        heat_map(line[-1], mine, title=f"{name}: {ours}", reach=REACH["ours"])
        line[0].set_ylabel("initial learning rate α")
    for ax in axes[-1]:
        ax.set_xlabel("decay per step: λ′ (L2) or λ (decoupled)")
    return figure


def intervals(table: pd.DataFrame, xlabel: str) -> Figure:
    """Points with intervals, one line per row of `table` (columns label, source: paper or ours, value, low, high)."""
    labels = list(dict.fromkeys(table["label"]))
    figure, ax = plt.subplots(figsize=(6.6, 0.55 * len(labels) + 1.0))
    for source, shift, marker in (("paper", -0.14, "D"), ("ours", 0.14, "o")):
        part = table[table["source"] == source]
        at = [labels.index(x) + shift for x in part["label"]]
        reach = np.abs(np.array([part["value"] - part["low"], part["high"] - part["value"]], float))
        ax.errorbar(
            part["value"],
            at,
            xerr=np.nan_to_num(reach),
            fmt=marker,
            ms=5,
            capsize=3,
            color=COLOURS[source],
            label=source,
        )
    ax.axvline(0, lw=0.8, ls=":", color=plt.rcParams["axes.edgecolor"])
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.set_xlabel(xlabel)
    ax.legend(frameon=False, loc="best")
    return figure


def learning_curves(curves: dict[str, Sequence[Sequence[float]]], ylabel: str) -> Figure:
    """Mean over seeds per epoch with the range of the seeds, one line per label of `curves` (lists over seeds)."""
    figure, ax = plt.subplots(figsize=(6.6, 3.4))
    for i, (label, seeds) in enumerate(curves.items()):
        values = np.array(seeds, float)
        epochs = np.arange(1, values.shape[1] + 1)
        (line,) = ax.plot(epochs, values.mean(0), label=label, ls=("-", "--", "-.", ":")[i % 4], color=f"C{i}")
        ax.fill_between(epochs, values.min(0), values.max(0), alpha=0.2, lw=0, color=line.get_color())
    ax.set_xlabel("epoch")
    ax.set_ylabel(ylabel)
    ax.legend(frameon=False)
    return figure
