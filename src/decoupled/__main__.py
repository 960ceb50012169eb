"""python -m decoupled: run, status, estimate, verdicts, compare, convert, fetch, export, import, notebooks, finish,
pdf, check."""

import argparse
import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Container, Iterator, Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from decoupled import outlook, plan, store, sweep, units, workers
from decoupled.runs import RunConfig

LOCAL = Path("data/runs")
PUBLISHED = Path("data/results")


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out one command; bad input ends in one line on stderr and exit status 1 (2 for a wrong command line)."""
    args = _parser().parse_args(argv)
    try:
        status = args.command(args)
        print(end="", flush=True)  # a full disk and a closed pipe show here, not after the end
        return status
    except (ValueError, OSError, RuntimeError) as err:
        line = (str(err).splitlines() or [""])[0] or type(err).__name__
        print("decoupled:", "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line), file=sys.stderr)
        try:
            print(end="", flush=True)
        except OSError:  # Python would try once more at the end, and say so at length
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("decoupled: stopped; finished runs are kept, the same command goes on from here", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m decoupled", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, function, text: str, *options: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=function)
        if "profile" in options:
            sub.add_argument("--profile", default="auto", help="auto, " + ", ".join(plan.PROFILES))
        if "experiments" in options:
            sub.add_argument("--experiments", nargs="+", default=list(plan.EXPERIMENTS), metavar="NAME")
        if "store" in options:
            sub.add_argument("--store", type=Path, default=LOCAL, help=f"folder of this machine's results ({LOCAL})")
        if "data" in options:
            sub.add_argument("--data", type=Path, help="folder with CIFAR-10 (default: data/raw, else a download)")
        if "workers" in options:
            sub.add_argument("--workers", type=_positive, help="worker processes (default: one per core or GPU)")
            sub.add_argument(
                "--pack", type=_positive, help=f"runs trained together by a worker ({sweep.CPU_PACK} on a CPU, else 1)"
            )
            sub.add_argument(
                "--executor", choices=("local", "parsl"), default="local", help="where workers are (local)"
            )
            sub.add_argument("--parsl-config", type=Path, metavar="FILE", help="for parsl, as in benchmarks/parsl/")
        return sub

    run = command("run", run_command, "train what is missing", "profile", "experiments", "store", "workers", "data")
    run.add_argument(
        "--time-limit", type=_seconds, metavar="SECONDS",
        help="start no run that would not finish in time; longer ones stop in time and go on with the next call",
    )  # fmt: skip
    run.add_argument("--yes", action="store_true", help="go on even if it takes more than a day")
    run.add_argument("--dry-run", action="store_true", help="list the missing runs in order, train nothing")
    run.add_argument("--key", nargs="+", default=(), help="only the runs with these keys, such as the explorer shows")
    command("status", status_command, "what is done and what is missing", "store")
    command("estimate", estimate_command, "time what is missing", "profile", "experiments", "store", "workers")
    verdicts = command("verdicts", verdicts_command, "the verdict on every claim", "profile", "store")
    verdicts.add_argument("--json", action="store_true", help="as JSON")
    command("compare", compare_command, "this machine's results against the published ones", "profile", "store")
    convert = command("convert", convert_command, "a weight decay from one system's unit to another's")
    convert.add_argument("--from", dest="source", required=True, metavar="UNIT", help=", ".join(units.CONVENTIONS))
    convert.add_argument("--to", dest="target", required=True, metavar="UNIT", help="the same names")
    convert.add_argument("--decay", type=float, required=True, help="the number to convert")
    convert.add_argument("--alpha", type=float, required=True, help="initial learning rate")
    for name, text in (("batch-size", "b"), ("train-size", "B, training images"), ("epochs", "T")):
        convert.add_argument(f"--{name}", type=float, help=f"{text} of normalized decay")
    convert.add_argument("--momentum", type=float, default=0.0, help="of SGD (0)")
    convert.add_argument("--optimizer", default="adamw", help=f"{' or '.join(units.OPTIMIZERS)} (adamw)")
    convert.add_argument("--json", action="store_true", help="as JSON")
    fetch = command("fetch", fetch_command, "download CIFAR-10 into data/raw")
    fetch.add_argument("--to", type=Path, default=Path("data/raw"))
    export = command("export", export_command, "write results to Parquet and CSV", "profile", "store")
    export.add_argument("--to", type=Path, help=f"file (default: {PUBLISHED}/PROFILE.parquet)")
    merge = command("import", import_command, "add exported results to this machine's", "store")
    merge.add_argument("file", type=Path)
    notebooks = command("notebooks", notebooks_command, "execute the notebooks for the book", "store")
    notebooks.add_argument("names", nargs="*", help="only these (default: all)")
    finish = command(
        "finish", finish_command, "make the built site ready to publish: a policy in each page, no ballast"
    )
    pdf = command("pdf", pdf_command, "print the built site as one PDF, into the site (needs Chromium)")
    check = command("check", check_command, "check the built site: pages, links, no request elsewhere")
    for sub in (finish, pdf, check):
        sub.add_argument("site", type=Path, nargs="?", default=Path("_build/html"))
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 9999:
        raise argparse.ArgumentTypeError(f"must be at {'least 1' if value < 1 else 'most 9999'}, got {text}")
    return value


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of seconds, got {text}")
    return value


def _profile(name: str) -> str:
    """The profile that `name` stands for on this machine."""
    if name == "auto":
        from decoupled import engine

        return engine.default_profile()
    if name not in plan.PROFILES:
        raise ValueError(f"unknown profile {name!r}; known: auto, {', '.join(plan.PROFILES)}")
    return name


@contextlib.contextmanager
def _sweep(
    args: argparse.Namespace, profile: str, data_folder: Path | None = None, time_limit: float | None = None
) -> Iterator[sweep.Sweep]:
    """A sweep into the local store, with the workers that were asked for; they end with it."""
    if (args.executor == "parsl") != (args.parsl_config is not None):
        raise ValueError("--executor parsl and --parsl-config FILE belong together")
    if args.executor == "parsl" and args.workers:
        raise ValueError("--workers is for this machine; the file of --parsl-config says how many workers there are")
    device = "cpu" if profile in ("smoke", "cpu") else None
    crew: workers.Workers
    if args.executor == "parsl":
        from decoupled import cluster

        crew = cluster.Cluster(args.parsl_config, args.store)
    else:
        from decoupled import engine

        device = "cpu" if engine.default_device() == "cpu" else device
        slots = workers.slots(device or engine.default_device())
        crew = workers.Local([slots[k % len(slots)] for k in range(args.workers or len(slots))])
    try:
        yield sweep.Sweep(
            store.Store(args.store),
            crew,
            device=device,
            data_folder=data_folder,
            pack_size=args.pack,
            time_limit=time_limit,
        )
    finally:
        crew.shutdown()


def _stages(
    args: argparse.Namespace, profile: str, source: str, failed: Container[str]
) -> Iterator[tuple[str, list[RunConfig]]]:
    """Experiment by experiment the grid and, as soon as all of it is stored or failed, the chosen cells; or `key`."""
    if args.key:
        yield "keys", outlook.with_keys(args.key, profile, source)
        return
    for name in args.experiments:
        grid = plan.grid_runs(name, profile, source)
        yield f"{name}, grid", grid
        frame = store.select(store.Store(args.store).frame(curves=False), grid)
        if len(frame) < len(grid) - sum(run.key() in failed for run in grid):
            print(f"{name}, chosen cells: wait for the grid")
        else:
            yield f"{name}, chosen cells", plan.winner_runs(name, profile, source, frame)


def run_command(args: argparse.Namespace) -> int:
    """Say what is missing and how long it takes, and train it."""
    profile = _profile(args.profile)
    for name in args.experiments:
        plan.grid_runs(name, profile, "cifar10")  # an unknown name fails before anything is loaded
    from decoupled import data

    local, started = store.Store(args.store), time.monotonic()
    if not args.dry_run:
        local.open_for_writing()
    images = data.find(args.data, allow_download=not args.dry_run, required=profile not in ("smoke", "cpu"))
    print(f"profile {profile}: {plan.PROFILES[profile].about}")
    print(f"images: {images.source}, fingerprint {images.fingerprint}", flush=True)
    made = local.frame(curves=False).query("dataset == @images.source and fingerprint != @images.fingerprint")
    if len(made):
        print(f"{len(made)} stored run(s) have other images: move them out of {args.store} to train them again")
    failed: dict[str, str] = {}
    limit = None if args.time_limit is None else max(0.0, args.time_limit - (time.monotonic() - started))
    with _sweep(args, profile, args.data, limit) as sweeper:
        table, hours = outlook.estimate(
            outlook.of(args.experiments, profile, images.source, local.frame(curves=False), args.key), sweeper
        )
        print(table, flush=True)
        in_parts = args.time_limit is not None and args.time_limit < 24 * 3600
        if hours > 24 and not (args.yes or args.dry_run or in_parts):
            raise ValueError(
                f"this would take about {hours:,.0f} h: --yes goes on, --time-limit with less than a day does a part"
            )
        for stage, runs in _stages(args, profile, images.source, failed):
            if args.dry_run:
                have = local.keys()
                missing = [run for run in runs if run.key() not in have]
                print(f"{stage}: {len(runs) - len(missing)} of {len(runs)} done; missing, in order:")
                for run in missing:
                    what = f"{run.algorithm} alpha={run.alpha:g} decay={run.decay:g} {run.schedule} seed={run.seed}"
                    print(f"  {run.key()} {what}")
                continue
            report = sweeper.carry_out(runs)
            print(
                f"{stage}: {report.found} done before, {report.trained} trained, {len(report.failed)} failed, "
                f"{report.left} left for lack of time ({time.monotonic() - started:.0f} s so far)",
                flush=True,
            )
            failed |= report.failed
        views = outlook.of(args.experiments, profile, images.source, local.frame(curves=False), args.key)
        if not args.dry_run and any(view.missing for view in views):
            print(outlook.estimate(views, sweeper)[0])
    if failed:
        raise RuntimeError(
            f"{len(failed)} run(s) failed; the first, {next(iter(failed))}: {next(iter(failed.values()))}"
        )
    return 0


def status_command(args: argparse.Namespace) -> int:
    """Runs finished here, published and planned; then what runs here, has failed and why, or cannot be used and why."""
    here_now = store.Store(args.store)
    local, published = here_now.frame(curves=False), store.published(PUBLISHED)
    print(f"{'profile':8} {'experiment':15} {'here':>12} {'published':>12}")
    for profile in plan.PROFILES:
        here, there = (
            outlook.of(list(plan.EXPERIMENTS), profile, plan.dataset_of(frame, profile), frame)
            for frame in (local, published.get(profile, local.iloc[:0]))
        )
        for ours, theirs in zip(here, there, strict=True):
            counts = [f"{view.done}/{view.planned}" for view in (ours, theirs)]
            print(f"{profile:8} {ours.experiment:15} {counts[0]:>12} {counts[1]:>12}")
    running, failed = sweep.running(here_now), sweep.failed(here_now)
    groups = {"running": sorted(running)}
    for key in failed.keys() - running:
        groups.setdefault(f"failed, {failed[key]}", []).append(key)
    groups |= {f"{why}, in {args.store}/quarantine": keys for why, keys in here_now.put_aside().items()}
    for what, keys in groups.items():
        if keys:
            print(f"{what}: {len(keys)} run(s), {', '.join(sorted(keys))}")
    plan.same_images(local)  # says what the book leaves out
    return 0


def estimate_command(args: argparse.Namespace) -> int:
    """What is still missing, and how long it takes here, from the speed of a few training steps measured now."""
    profile = _profile(args.profile)
    frame = store.Store(args.store).frame(curves=False)
    views = outlook.of(args.experiments, profile, plan.dataset_of(frame, profile), frame)
    with _sweep(args, profile) as sweeper:
        print(outlook.estimate(views, sweeper)[0])
    return 0


def _rows(args: argparse.Namespace) -> tuple[str, pd.DataFrame]:
    """A profile and its local results; for `auto` without local results the best published profile."""
    aside = partial(print, file=sys.stderr)  # stdout may be JSON
    frame = plan.same_images(store.Store(args.store, aside).frame(), aside)
    if args.profile != "auto":
        profile = _profile(args.profile)
        return profile, plan.rows(frame, profile)
    profile = _profile("auto")
    if plan.rows(frame, profile).empty:
        published = store.published(PUBLISHED, aside)
        profile = next((name for name in plan.RANK if name in published), profile)
        return profile, published.get(profile, frame.iloc[:0])
    return profile, plan.rows(frame, profile)


def verdicts_command(args: argparse.Namespace) -> int:
    """The verdict on every claim, with n, interval and rule."""
    from decoupled import report

    profile, frame = _rows(args)
    table = report.judge(frame, profile, report.load_paper())
    if args.json:
        print(json.dumps({"profile": profile, "claims": json.loads(table.to_json(orient="records"))}, indent=1))
        return 0
    dataset = plan.dataset_of(frame, profile)
    print(f"profile {profile}, {len(frame)} runs" + (", on GENERATED images, not CIFAR-10" * (dataset == "generated")))
    for row in table.itertuples():
        number = f"{row.ours} {row.interval}" if row.n else ""
        part = f" ({row.part!s})" if row.part else ""
        print(f"  {row.id:4} {row.verdict:27} {number:28} {row.statement}{part}")
    return 0


def compare_command(args: argparse.Namespace) -> int:
    """Experiment by experiment: how many runs agree with the published ones to the bit, and how far the others are."""
    from decoupled import report

    profile, frame = _rows(args)
    published = store.published(PUBLISHED).get(profile)
    if published is None:
        print(f"nothing is published for profile {profile}; nothing to compare with")
        return 0
    print(report.compare(frame, published, profile).to_string(index=False))
    return 0


def convert_command(args: argparse.Namespace) -> int:
    """A weight decay in another system's unit, and what else must be set."""
    sizes = {"batch_size": args.batch_size, "train_size": args.train_size, "epochs": args.epochs}
    more = {"alpha": args.alpha, "momentum": args.momentum, "optimizer": args.optimizer, **sizes}
    result = units.convert(args.decay, args.source, args.target, **more)
    print(units.as_json(result) if args.json else units.as_text(result))
    return 0


def fetch_command(args: argparse.Namespace) -> int:
    """Download CIFAR-10, verified by its official checksum."""
    from decoupled import data

    print(data.fetch(args.to))
    return 0


def export_command(args: argparse.Namespace) -> int:
    """The results of a profile as one Parquet file and one CSV."""
    profile = _profile(args.profile)
    frame = plan.rows(store.Store(args.store).frame(), profile)
    if frame.empty:
        raise ValueError(f"no results of profile {profile} in {args.store}")
    for path in store.export(frame, args.to or PUBLISHED / f"{profile}.parquet"):
        print(f"{path}: {len(frame)} runs")
    return 0


def import_command(args: argparse.Namespace) -> int:
    """Add the runs of an exported file to this machine's results."""
    frame = store.load(args.file)
    new = store.merge_into(store.Store(args.store), frame)
    print(f"{args.file}: {len(frame)} runs, {new} new")
    return 0


def notebooks_command(args: argparse.Namespace) -> int:
    """Execute the notebooks into book/notebooks and write the values that prose quotes."""
    from decoupled import publish

    publish.vendor_mathjax()
    publish.write_generated(PUBLISHED)
    refused = publish.run_notebooks({"local_results": str(args.store)}, args.names)
    return 1 if refused else 0


def finish_command(args: argparse.Namespace) -> int:
    """Finish the built site."""
    from decoupled import site

    print(f"{args.site}: {site.finish(args.site)} pages finished")
    return 0


def pdf_command(args: argparse.Namespace) -> int:
    """Print the built site as one PDF, and offer it on the start page."""
    from decoupled import pdf, site

    print(pdf.write_pdf(args.site))
    site.finish(args.site)
    return 0


def check_command(args: argparse.Namespace) -> int:
    """Check the built site."""
    from decoupled import site

    pages, problems = site.check_site(args.site)
    print(*problems, sep="\n", end="\n" if problems else "")
    print(f"{args.site}: {pages} pages, {len(problems)} problem(s)")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
