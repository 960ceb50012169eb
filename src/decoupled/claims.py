"""Statistics on paired runs and on grids, and the claims of the paper: a number, an interval, a verdict for each.

Every rule is written before its number. Differences are paired by seed and use fresh seeds of cells that another seed
chose on validation error, so that the best of many cells is not judged by its luck. The shape of a grid is judged by a
parametric bootstrap with the spread between seeds. The paper's figures pass through the same functions.

Errors are in per cent, differences in percentage points (pp). Arrays of errors end in the axes (alpha, decay), after
bootstrap draws, written .... NaN is a diverged or missing cell, +inf one at the end of the paper's colour bar.
"""

from collections import namedtuple
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from decoupled import plan
from decoupled.plan import RunConfig

LEVEL, ALPHA = 0.95, 0.05  # of the intervals; of one-sided tests, whose two-sided interval has level 1 - 2 ALPHA
GRID_SEED, MIN_PAIRS = 0, 3  # the seed that chooses cells, all others are fresh; fresh seeds that a difference needs
PAPER_SD = 0.13  # pp between repetitions of one run of the paper, from the settings that its figures show twice
MARGIN = 0.2  # pp at the paper's error level that we call no difference: 1.5 PAPER_SD
WINDOW_SD, ROW_BEST = 6.0, 1.8  # see row_optima
REPRODUCED, CONTRADICTED, INCONCLUSIVE = "reproduced", "contradicted", "inconclusive"
NOT_TESTED = "not tested at this profile"
LABELS = {"sgd": "SGD", "sgdw": "SGDW", "adam": "Adam", "adamw": "AdamW"}
DECOUPLED = {"sgd": "sgdw", "adam": "adamw"}  # with decay 0 these are one algorithm, stored under the second name
PARTS = {"positive": "decay > 0", "zero": "decay == 0", "any": "decay >= 0"}
COLUMNS = ["algorithm", "schedule", "alpha", "decay", "seed", "test_error", "val_error", "diverged_step"]
FREE = ("algorithm", "alpha", "decay", "seed", "evaluations")  # all other fields are one value in all runs of a grid
# name -> the rule in words, and (low, high, margin) -> is it reproduced, is it contradicted; NaN is neither
RULES: dict[str, tuple[str, Callable[[float, float, float], tuple[bool, bool]]]] = {
    "above": ("reproduced if the 95 % interval lies above 0, contradicted if below 0", lambda a, b, m: (a > 0, b < 0)),
    "below": ("reproduced if the 95 % interval lies below 0, contradicted if above 0", lambda a, b, m: (b < 0, a > 0)),
    "same": ("reproduced if the 90 % interval lies within the margin (two one-sided t tests), contradicted if outside",
             lambda a, b, m: (-m < a and b < m, a > m or b < -m)),
    "no gain": ("reproduced if the 90 % interval lies below the margin (one-sided t test), contradicted if above it",
                lambda a, b, m: (b < m, a > m)),
    "slope 0": ("reproduced if the 95 % interval holds 0 and lies in (-1, 1), or lies in (-1/2, 1/2), and over half of "
                "the rows have their best decay inside the grid; contradicted if it lies outside (-1/2, 1/2)",
                lambda a, b, m: ((a > -1 and a <= 0 <= b and b < 1) or (a > -0.5 and b < 0.5), a > 0.5 or b < -0.5)),
    "slope -1": ("reproduced if the 95 % interval holds -1 and lies below 0, or lies in (-3/2, -1/2); contradicted if "
                 "it lies outside (-3/2, -1/2) and over half of the rows have their best decay inside the grid",
                 lambda a, b, m: ((a <= -1 <= b and b < 0) or (a > -1.5 and b < -0.5), a > -0.5 or b < -1.5)),
    "torch": ("the rule for AdamW's slope in C7, moved by -1: the same runs re-plotted, so this adds no evidence",
              lambda a, b, m: RULES["slope 0"][1](a + 1, b + 1, m)),
}  # fmt: skip
Triple = tuple[float, float, float]  # value, low, high
Paired = namedtuple("Paired", "value low high n sd")  # mean difference, its t interval; number and sd of differences


class NotTested(Exception):
    """A claim lacks runs; the text says which."""


class Cell(NamedTuple):
    """A setting of a grid, and the column whose lowest value chose it."""

    algorithm: str
    schedule: str
    alpha: float
    decay: float
    column: str


class Grid(NamedTuple):
    """Errors with index alpha and columns decay, both rising; finished runs per cell; number of diverged runs."""

    error: pd.DataFrame
    runs: pd.DataFrame
    diverged: int


class Finding(NamedTuple):
    """What a claim, or a part of it, came to: a number with its interval, from `n` pairs of runs or cells."""

    value: float
    low: float
    high: float
    n: int
    unit: str
    verdict: str
    note: str


def paired(a: pd.Series, b: pd.Series, level: float = LEVEL) -> Paired:
    """Mean of a - b over the seeds (index) that both have, with its t interval (NaN for one seed).

    A diverged run (NaN) makes the result NaN rather than drop out: the seeds that survive would be the lucky ones.
    """
    both = pd.concat([a, b], axis=1, join="inner").to_numpy(float)
    difference, n = both[:, 0] - both[:, 1], len(both)
    mean = float(difference.mean()) if n else np.nan
    sd = float(difference.std(ddof=1)) if n > 1 else np.nan
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * sd / n**0.5 if n > 1 else np.nan
    return Paired(mean, mean - half, mean + half, n, sd)


def equivalent(a: pd.Series, b: pd.Series, margin: float, alpha: float = ALPHA) -> bool:
    """Two one-sided t tests at `alpha`: is the paired difference within +-margin (1 - 2 alpha interval inside it)?"""
    return RULES["same"][1](*paired(a, b, 1 - 2 * alpha)[1:3], margin)[0]


def pooled_sd(frame: pd.DataFrame) -> float:
    """Spread of the test error between seeds, pp, pooled over cells with two or more runs, none diverged; else NaN."""
    groups = frame.groupby(COLUMNS[:4])["test_error"]
    cells = pd.DataFrame({"variance": groups.var(skipna=False), "dof": groups.size() - 1}).query("dof > 0").dropna()
    return float(np.sqrt(np.average(cells.variance, weights=cells.dof))) if len(cells) else np.nan


def runs(frame: pd.DataFrame, algorithm: str, schedule: str, part: str = "any") -> pd.DataFrame:
    """Rows of a grid, or of its part with `positive` or `zero` decay; `schedule` is fixed, step or cosine.

    Decay 0 is taken from the decoupled name as well. A row without a diverged_step is a planned run, not yet finished.
    Raises ValueError if the rows mix schedules of that name, networks, budgets or the like.
    """
    zero = frame.decay.eq(0) & frame.algorithm.eq(DECOUPLED.get(algorithm, algorithm))
    kind = frame.schedule.astype(str).str.extract(r"([a-z]+)", expand=False)
    rows = frame[kind.eq(schedule) & (frame.algorithm.eq(algorithm) | zero)]
    if rows.decay.gt(0).any():
        rows = rows[rows.alpha.isin(rows.alpha[rows.decay.gt(0)])]
    for column in [field.name for field in fields(RunConfig) if field.name not in FREE]:
        if column in rows and rows[column].nunique() > 1:
            found = ", ".join(map(str, sorted(rows[column].unique())))
            raise ValueError(f"runs of {algorithm}, {schedule}, differ in {column} ({found}); pass one at a time")
    rows = rows.sort_values(["algorithm", "diverged_step"]).drop_duplicates(["alpha", "decay", "seed"])
    return rows.query(PARTS[part])


def pivot(frame: pd.DataFrame, algorithm: str, schedule: str, part: str = "any", column: str = "test_error") -> Grid:
    """Mean of `column` over seeds per cell. A cell of which any run diverged is NaN, as is one that has no run."""
    rows = runs(frame, algorithm, schedule, part)
    done = rows[rows.diverged_step.notna()]
    cells = done.groupby(["alpha", "decay"])[column]
    alphas, decays = (pd.Index(np.unique(rows[name].to_numpy(float)), name=name) for name in ("alpha", "decay"))
    error, count = (cell.unstack().reindex(alphas, columns=decays) for cell in (cells.mean(skipna=False), cells.size()))
    return Grid(error.astype(float), count.fillna(0).astype(int), int((done.diverged_step >= 0).sum()))


def paper_runs(paper: pd.DataFrame) -> pd.DataFrame:
    """Rows of data/paper/paper_figures.csv in the form of our results: one run per cell, its panel the schedule."""
    rows = paper.rename(columns={"lr": "alpha", "wd": "decay", "panel": "schedule"})
    rows["algorithm"], rows["seed"], rows["diverged_step"] = rows.algorithm.str.lower(), GRID_SEED, -1
    rows["test_error"], rows["val_error"] = rows.error_pct.where(rows.saturated == 0, np.inf), np.nan
    return rows[COLUMNS]


def paper_grid(paper: pd.DataFrame, figure: str, algorithm: str, schedule: str = "cosine", part: str = "any") -> Grid:
    """A panel of `Fig1` or `Fig2`; cells at the end of the colour bar are +inf."""
    return pivot(paper_runs(paper[paper.figure == figure]), algorithm, schedule, part)


def row_optima(error: np.ndarray, decays: np.ndarray, sd: float) -> tuple[np.ndarray, np.ndarray]:
    """log2 of the best decay of every learning rate (NaN: row left out), and whether it is censored, both [..., alpha].

    `error` is [..., alpha, decay], decay > 0, `sd` the spread between seeds in pp. One parabola in log2 decay per row,
    with a curvature that all rows share, through the row's best cell, its two neighbours, and every cell that exceeds
    the best by at most 6 sd, or by the grid's median less its best if that is more (neighbours beyond count as just
    there); its vertex, kept to half a step beyond those cells. The best cell if the curvature is not positive. Left
    out: rows without a finite cell, or whose best is above 1.8 times the grid's (the reach of the paper's colour bar)
    + 6 sd. Censored: best at the edge, which pulls slopes towards 0.

    Chosen on the paper's own grids (not on ours): every 4 x 4 window of its SGD, SGDW and AdamW panels at every second
    decay that holds the basin, with noise of 0.13, 0.35 and 0.7 pp added. The slope is off by at most 0.22, 0.27 and
    0.46 (rms, worst panel); without the two neighbours by 0.34, 0.36 and 0.60; with a parabola of its own through three
    cells per row by 0.19, 0.26 and 0.49. The 95 % interval then covers 61 to 94 %: take it as a lower bound.
    """
    log = np.log2(decays)
    value = np.where(np.isfinite(error), error, np.inf)
    row_best, best, edge = value.min(-1), value.min((-1, -2))[..., None], value.argmin(-1)
    used = np.isfinite(row_best) & (row_best <= ROW_BEST * best + WINDOW_SD * sd)
    reach = np.maximum(WINDOW_SD * sd, np.median(value, (-1, -2))[..., None] - np.nan_to_num(best, posinf=0.0))
    beside = np.abs(np.arange(len(log)) - edge[..., None]) <= 1
    value = np.where(beside, np.minimum(value, (row_best + reach)[..., None]), value)
    near = used[..., None] & np.isfinite(value) & (value <= (row_best + reach)[..., None])
    level, count, tiny = np.where(near, value, 0.0), np.maximum(near.sum(-1, keepdims=True), 1), np.finfo(float).tiny
    mean = np.where(near, log, 0.0).sum(-1, keepdims=True) / count
    x = np.where(near, log - mean, 0.0)
    square = np.where(near, x * x - (x * x).sum(-1, keepdims=True) / count, 0.0)
    square_slope, level_slope = ((y * x).sum(-1) / np.maximum((x * x).sum(-1), tiny) for y in (square, level))
    bend = square - square_slope[..., None] * x  # what is left of x^2 after a straight line in every row
    curvature = ((bend * level).sum((-1, -2)) / np.maximum((bend * bend).sum((-1, -2)), tiny))[..., None]
    ok, half = (near.sum(-1) > 1) & (curvature > 1e-9), (log[1] - log[0]) / 2
    vertex = mean[..., 0] - (level_slope - curvature * square_slope) / np.where(ok, 2 * curvature, 1.0)
    lowest, highest = np.where(near, log, np.inf).min(-1) - half, np.where(near, log, -np.inf).max(-1) + half
    optimum = np.where(ok, np.clip(vertex, lowest, highest), log[edge])
    return np.where(used, optimum, np.nan), used & ((edge == 0) | (edge == len(log) - 1))


def ridge_slope(error: np.ndarray, alphas: np.ndarray, decays: np.ndarray, sd: float) -> np.ndarray:
    """Least-squares slope of log2 best decay (`row_optima`) on log2 alpha, [...]; NaN with fewer than two rows."""
    optimum, _ = row_optima(error, decays, sd)
    used = np.isfinite(optimum)
    x = np.where(used, np.log2(alphas), 0.0)
    x = np.where(used, x - x.sum(-1, keepdims=True) / np.maximum(used.sum(-1, keepdims=True), 1), 0.0)
    spread = np.where(used.sum(-1) > 1, (x * x).sum(-1), np.nan)
    return (x * np.where(used, optimum, 0.0)).sum(-1) / spread


def additive_r2(error: np.ndarray, cap: float) -> float:
    """Share of the variance of an [alpha, decay] grid that row and column means explain; clipped at, NaN =, `cap`."""
    value = np.minimum(np.where(np.isnan(error), cap, error), cap)
    residual = value - value.mean(0) - value.mean(1, keepdims=True) + value.mean()
    return float(1 - np.sum(residual**2) / np.sum((value - value.mean()) ** 2))


def coordinate_regret(error: np.ndarray) -> np.ndarray:
    """What tuning decay at a given learning rate, then the learning rate at that decay, loses against the best cell.

    In pp, [..., alpha of the start]; NaN for a start without a finite cell. Report its mean and maximum over starts.
    """
    value = np.where(np.isfinite(error), error, np.inf)
    start, reached = value.min(-1), np.take_along_axis(value.min(-2), value.argmin(-1), -1)
    return np.where(np.isfinite(start), reached - np.nan_to_num(value.min((-1, -2)))[..., None], np.nan)


def bootstrap(
    statistic: Callable[..., np.ndarray], grids: Sequence[Grid], sd: float, draws: int = 1000, seed: int = 0
) -> Triple:
    """A statistic of grids, and its percentile interval under normal noise of sd / sqrt(runs) added to every cell.

    The noise stands for other seeds; that the grid is itself noisy widens the interval and is not subtracted.
    `statistic` maps arrays [..., alpha, decay] to [...]. The interval is NaN if over 2 % of the draws are undefined.
    """
    normal = np.random.default_rng(seed).standard_normal
    errors = [grid.error.to_numpy(float) for grid in grids]
    scales = [sd / np.sqrt(np.maximum(grid.runs.to_numpy(), 1)) for grid in grids]
    values = statistic(*(e + s * normal((draws, *s.shape)) for e, s in zip(errors, scales, strict=True)))
    enough = np.isnan(values).mean() <= 0.02
    low, high = np.nanquantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if enough else (np.nan, np.nan)
    return float(statistic(*errors)), float(low), float(high)


def select(frame: pd.DataFrame, algorithm: str, schedule: str, part: str = "any") -> Cell | None:
    """The cell with the lowest validation error of the grid seed, of those with `positive`, `zero` or `any` decay.

    Test error chooses only if no run has a validation split; `Cell.column` says which did. None if nothing finished.
    """
    rows = runs(frame, algorithm, schedule, part).query("seed == @GRID_SEED and diverged_step.notna()")
    chosen = plan.choose(rows, algorithm, str(rows.schedule.iloc[0]), part) if len(rows) else None
    return chosen and Cell(algorithm, schedule, *chosen, "test_error" if rows.val_error.isna().all() else "val_error")


def fresh(frame: pd.DataFrame, cell: Cell) -> pd.Series:
    """Test errors of a cell by seed, without the seed that chose it; NaN for a diverged run."""
    rows = runs(frame, cell.algorithm, cell.schedule).query("seed != @GRID_SEED and diverged_step.notna()")
    return rows[rows.alpha.eq(cell.alpha) & rows.decay.eq(cell.decay)].set_index("seed")["test_error"].sort_index()


class Source(NamedTuple):
    """Our runs, or the paper's, whose one run per cell both chooses the cell and is reported."""

    frame: pd.DataFrame
    sd: float  # between seeds, pp; NaN if unknown
    margin: float  # of no difference, as a fraction of the error
    is_paper: bool = False

    def grid(self, algorithm: str, schedule: str = "cosine", part: str = "positive", least: int = 3) -> Grid:
        """A part of a grid; NotTested if cells are missing, or it has fewer than `least` learning rates or decays."""
        grid = pivot(self.frame, algorithm, schedule, part)
        done, cells, shape = int((grid.runs.to_numpy() > 0).sum()), grid.runs.size, grid.runs.shape
        if done < cells or min(shape) < least or grid.error.isna().to_numpy().all():
            few = f"; the grid is {shape[0]} x {shape[1]}, {least} x {least} is needed" if min(shape) < least else ""
            raise NotTested(f"{LABELS[algorithm]} {schedule}: {done} of {cells} cells, {grid.diverged} diverged{few}")
        if least > 1 and np.isnan(self.sd):
            raise NotTested("no cell under cosine has two runs, so the spread between seeds is unknown")
        return grid

    def best(self, words: str) -> tuple[Cell, pd.Series]:
        """The best cell of `algorithm schedule part`, part as in PARTS, and its errors by seed."""
        algorithm, schedule, part = words.split()
        self.grid(algorithm, schedule, part, least=1)
        if (cell := select(self.frame, algorithm, schedule, part)) is None:
            raise NotTested(f"{words}: no run with seed {GRID_SEED} that could choose a cell")
        return cell, fresh(self.frame.assign(seed=-1) if self.is_paper else self.frame, cell)


def _finding(rule: str, label: str, numbers: Triple, n: int, unit: str, note: str, m: float = 0) -> Finding:
    yes, no = RULES[rule][1](numbers[1], numbers[2], m)
    verdict = REPRODUCED if yes else CONTRADICTED if no else INCONCLUSIVE
    text = f"{label}: {numbers[0]:+.2f}" + ("" if np.isnan(numbers[1]) else " [{:+.2f}, {:+.2f}]".format(*numbers[1:]))
    return Finding(*numbers, n, unit, verdict, f"{text}{unit}; {note}")


def gap(source: Source, rule: str, plus: str, minus: str) -> Finding:
    """Errors of the best cells named in `plus` less those in `minus`, paired by seed; names are joined by commas."""
    found = [source.best(words) for words in f"{plus}, {minus}".split(", ")]
    errors, k = pd.concat([error for _, error in found], axis=1, join="inner"), plus.count(",") + 1
    names = [f"{LABELS[c.algorithm]} {c.schedule} ({c.alpha:.3g}, {c.decay:.3g})" for c, _ in found]
    if len(errors) < MIN_PAIRS and not source.is_paper:
        raise NotTested(f"{len(errors)} of {MIN_PAIRS} fresh seeds shared by {', '.join(names)}")
    a, b = errors.iloc[:, :k].sum(axis=1, skipna=False), errors.iloc[:, k:].sum(axis=1, skipna=False)
    uses_margin, margin = rule in ("same", "no gain"), source.margin * float(b.mean())
    value, low, high, n, _ = paired(a, b, 1 - 2 * ALPHA if uses_margin else LEVEL)
    note = f"(alpha, decay) chosen on {found[0][0].column}" + f", margin {margin:.2f} pp" * uses_margin
    note += ", a fresh run diverged" * bool(errors.isna().to_numpy().any())
    label = f"{' and '.join(names[:k])} less {' and '.join(names[k:])}"
    return _finding(rule, label, (value, low, high), n, " pp", note, margin)


def slope(source: Source, rule: str, algorithm: str) -> Finding:
    """Slope of log2 best decay on log2 alpha under cosine; for the rule `torch` of log2 (decay / alpha), 1 less."""
    grid, shift = source.grid(algorithm), -1.0 * (rule == "torch")
    error, alphas, decays = (part.to_numpy(float) for part in (grid.error, grid.error.index, grid.error.columns))
    numbers = bootstrap(lambda e: ridge_slope(e, alphas, decays, source.sd) + shift, [grid], source.sd)
    optimum, censored = row_optima(error, decays, source.sd)
    rows, edge = int(np.isfinite(optimum).sum()), int(censored.sum())
    best = ", ".join(f"{2**log:.2g}" for log in optimum if np.isfinite(log))
    note = f"best decay by rising alpha {best}; {edge} of {rows} at the edge of the grid, {grid.diverged} diverged"
    found = _finding(rule, f"slope of {LABELS[algorithm]}", numbers, error.size, "", note)
    flat = {"slope -1": CONTRADICTED, "below": None}.get(rule, REPRODUCED)  # what censoring favours
    weak = rows < 3 or (found.verdict == flat and 2 * edge >= rows)
    return found._replace(verdict=INCONCLUSIVE) if weak else found


def regret(source: Source, rule: str, algorithm: str, start: int | None = None) -> Finding:
    """Coordinate regret of an L2 algorithm less that of its decoupled form: mean over starts, or from row `start`."""
    names = (algorithm, DECOUPLED[algorithm])
    grids = [source.grid(name) for name in names]

    def pick(error: np.ndarray) -> np.ndarray:
        regrets = coordinate_regret(error)
        return np.nanmean(regrets, -1) if start is None else regrets[..., start]

    numbers = bootstrap(lambda a, b: pick(a) - pick(b), grids, source.sd)
    note = " and ".join(f"{pick(grid.error.to_numpy(float)):.2f}" for grid in grids)
    cells, label = sum(grid.error.size for grid in grids), " less ".join(LABELS[name] for name in names)
    return _finding(rule, label, numbers, cells, " pp", note)


class Claim(NamedTuple):
    """A claim of the paper as a fact, and its parts: a function of a Source, the name of a rule, more arguments."""

    id: str
    statement: str
    parts: tuple[tuple[Any, ...], ...]

    def measure(self, source: Source) -> Finding:
        """The part that decides (a contradicted one, else an inconclusive one, else the first), with all notes."""
        try:
            found: list[Finding] = [function(source, *arguments) for function, *arguments in self.parts]
        except NotTested as missing:
            return Finding(np.nan, np.nan, np.nan, 0, "", NOT_TESTED, str(missing))
        decides = min(found, key=lambda part: (CONTRADICTED, INCONCLUSIVE, REPRODUCED).index(part.verdict))
        return decides._replace(note="; ".join(part.note for part in found))


CLAIMS = tuple(Claim(f"C{n}", *row) for n, row in enumerate((
    ("With step drops and with cosine annealing, the best AdamW has a lower error than the best Adam with L2.",
     ((gap, "above", "adam step any", "adamw step any"), (gap, "above", "adam cosine any", "adamw cosine any"))),
    ("At a fixed learning rate, AdamW is as good as Adam.", ((gap, "same", "adam fixed any", "adamw fixed any"),)),
    ("AdamW gains more on Adam under cosine annealing than at a fixed learning rate.",
     ((gap, "above", "adam cosine any, adamw fixed any", "adamw cosine any, adam fixed any"),)),
    ("A better schedule lowers the best error: from fixed to step to cosine for AdamW, to cosine for Adam.",
     ((gap, "above", "adamw fixed any", "adamw step any"), (gap, "above", "adamw step any", "adamw cosine any"),
      (gap, "above", "adam fixed any", "adam cosine any"))),
    ("For SGD the best L2 factor is inversely proportional to the learning rate.", ((slope, "slope -1", "sgd"),)),
    ("For SGDW the best decay does not depend on the learning rate.", ((slope, "slope 0", "sgdw"),)),
    ("For AdamW the best decay does not depend on the learning rate; for Adam the best L2 factor falls as it rises.",
     ((slope, "slope 0", "adamw"), (slope, "below", "adam"))),
    ("AdamW's best decay / alpha, PyTorch's weight_decay, goes as 1 / alpha.", ((slope, "torch", "adamw"),)),
    ("Tuning decay first and the learning rate second costs SGD and Adam more than SGDW and AdamW.",
     ((regret, "above", "sgd"), (regret, "above", "adam"))),
    ("From the best decay at the highest learning rate, SGD has to change both to get to its best error; SGDW has not.",
     ((regret, "above", "sgd", -1),)),
    ("The best decay at the lowest learning rate serves SGDW everywhere, but not SGD.", ((regret, "above", "sgd", 0),)),
    ("Adam gains nothing from L2.", ((gap, "no gain", "adam cosine zero", "adam cosine positive"),)),
    ("AdamW gains from decay.", ((gap, "above", "adamw cosine zero", "adamw cosine positive"),)),
), start=1))  # fmt: skip


def judge(frame: pd.DataFrame, paper: pd.DataFrame) -> pd.DataFrame:
    """One row per claim: our results (of one network and budget; may be partial) beside the paper's figures."""
    shown = paper_runs(paper[(paper.figure == "Fig2") | ((paper.figure == "Fig1") & (paper.panel != "cosine"))])
    margin = MARGIN / pivot(shown, "adam", "fixed").error.to_numpy().min()
    ours = frame if len(frame) else pd.DataFrame(columns=COLUMNS)
    sd = pooled_sd(ours[ours.schedule.astype(str).str.startswith("cosine")])
    rows = []
    for claim in CLAIMS:
        found = claim.measure(Source(ours, sd, margin))
        theirs = claim.measure(Source(shown, PAPER_SD, margin, is_paper=True))
        value, interval = f"{found.value:+.2f}{found.unit}", f"[{found.low:+.2f}, {found.high:+.2f}]"
        rule = "; ".join(dict.fromkeys(RULES[part[1]][0] for part in claim.parts))
        ours_text = (value, found.n, interval) if found.n else ("", 0, "")
        shown_value = f"{theirs.value:+.2f}{theirs.unit}"
        rows.append((*claim[:2], shown_value, *ours_text, rule, *found[5:], theirs.note, *found[:3], found.unit))
    names = "id statement paper ours n interval rule verdict note paper_note value low high unit"
    return pd.DataFrame(rows, columns=names.split())
