"""Measure the engine against the loops a user would write: same network, images, batch and hardware, in one run.

    python benchmarks/bench.py            a table on the screen, numbers in build/bench.json
    python benchmarks/bench.py --packs    on a GPU: the ways to lay runs on it (variants A to E)

Ratios inside one call are what counts; absolute speeds belong to the machine. The contestants take turns (A B A B ...)
and medians are reported, so that a machine that slows down slows all of them.
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import loops
import torch
from torch.nn import functional as F

from decoupled import data, engine, models, plan, store, sweep, workers
from decoupled.plan import cell
from decoupled.profiles import PROFILES
from decoupled.runs import RunConfig

ROUNDS = 3
SECONDS = 5.0  # of one contestant's turn
SMALL = dataclasses.replace(cell("cpu", "cifar10", "adamw", 0.004, 0.004, "cosine", seed=0), batch_size=128)
GPU_SMALL = dataclasses.replace(SMALL, train_size=45_000, epochs=4, precision="bfloat16")
GPU_NETS = {f"2x{width}d": cell("gpu", "cifar10", "adamw", 1e-3, 1e-3, "cosine", seed=0) for width in (16, 32, 64)}
GPU_NETS = {name: dataclasses.replace(run, width=int(name[2:-1])) for name, run in GPU_NETS.items()}
CELLS = (4, 16, 64)
TOGETHER = (4, 16)  # runs on one GPU at the same time


def cells(run: RunConfig, count: int) -> list[RunConfig]:
    """`count` cells of a grid of learning rates, all of one shape."""
    return [dataclasses.replace(run, alpha=run.alpha * 2 ** (i / count)) for i in range(count)]


def _cpu_worker(runs: list[RunConfig], seconds: float, threads: int, images: data.Images, barrier, out) -> None:
    torch.set_num_threads(threads)
    contestant = loops.ours(images, runs, "cpu")
    barrier.wait()
    out.put((contestant(seconds), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20))


def cpu_engine(images: data.Images, runs: list[RunConfig], processes: int, threads: int) -> tuple[float, float]:
    """(images per second, resident GiB of all) of `processes` engine processes of `threads` threads, a pack in each."""
    context = multiprocessing.get_context("spawn")
    barrier, out = context.Barrier(processes), context.Queue()
    started = [
        context.Process(target=_cpu_worker, args=(runs, SECONDS, threads, images, barrier, out))
        for _ in range(processes)
    ]
    for worker in started:
        worker.start()
    results = [out.get() for _ in started]
    for worker in started:
        worker.join()
    return sum(speed for speed, _ in results), sum(memory for _, memory in results)


def plain_run_seconds(images: data.Images, run: RunConfig, device: str) -> float:
    """One whole run as a user would write it: model, loaders, all epochs, the error on validation and test images."""
    started = time.monotonic()
    torch.set_num_threads(os.cpu_count() or 1)
    model = models.build(run.network, run.width, [0]).to(device)
    opt = loops.optimizer(model, run)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, run.steps)
    part, held_out = data.split(run.train_size)
    source = loops.loader(images.train_x[part], images.train_y[part], run, train=True)
    for _ in range(run.epochs):
        for x, y in source:
            opt.zero_grad()
            F.cross_entropy(model(x.to(device), None)[0], y.to(device)).backward()
            opt.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        for x_all, y_all in ((images.train_x[held_out], images.train_y[held_out]), (images.test_x, images.test_y)):
            for x, y in loops.loader(x_all, y_all, run, train=False):
                (model(x.to(device), None)[0].argmax(1).cpu() != y).sum().item()
    return time.monotonic() - started


def grid_seconds(runs: list[RunConfig], device: str, pack_size: int | None = None) -> float:
    """A grid through the sweep: worker processes, images, training, evaluation and store included."""
    crew = workers.Local(workers.slots(device))
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        here = None if device == "cuda" else device
        sweeper = sweep.Sweep(store.Store(folder), crew, device=here, data_folder=None, pack_size=pack_size)
        report = sweeper.carry_out(runs)
        assert report.trained == len(runs)
        seconds = time.monotonic() - started
    crew.shutdown()
    return seconds


def result_of(run: RunConfig) -> dict:
    """A made-up result of the usual size."""
    curves = {name: [1.0] * run.epochs for name in store.CURVES}
    return dict.fromkeys(store.NUMBERS, 1.0) | curves


def store_numbers(many: int = 10_000) -> dict[str, float]:
    """Seconds to write and read back one result, and of `status` with 10,000 results of the paper's plan stored."""
    made = store.provenance("bench", torch.__version__, "0" * 16)
    runs = [run for name in plan.EXPERIMENTS for run in plan.grid_runs(name, "paper", "cifar10")]
    runs = [dataclasses.replace(run, seed=seed) for seed in range(-(-many // len(runs))) for run in runs][:many]
    with tempfile.TemporaryDirectory() as folder:
        local = store.Store(folder)
        started = time.monotonic()
        for run in runs[:200]:
            local.write(run, result_of(run), made)
        local.frame()
        per_run = (time.monotonic() - started) / 200
        for run in runs[200:]:
            local.write(run, result_of(run), made)
        started = time.monotonic()
        command = [sys.executable, "-m", "decoupled", "status", "--store", folder]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return {"store.seconds_per_run": per_run, "store.status_10k_seconds": time.monotonic() - started}


def take_turns(contestants: dict[str, loops.Contestant], rounds: int = ROUNDS) -> dict[str, float]:
    """Median images per second of each."""
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, contestant in contestants.items():
            speeds[name].append(contestant(SECONDS))
    return {name: statistics.median(values) for name, values in speeds.items()}


def cpu_numbers(images: data.Images) -> dict[str, float]:
    """The CPU's part of the table."""
    cores, memory = len(workers.slots("cpu")), []

    def engine_of(processes: int, threads: int, runs: int = sweep.CPU_PACK) -> loops.Contestant:
        def contestant(_: float) -> float:
            speed, gib = cpu_engine(images, cells(SMALL, runs), processes, threads)
            memory.append(gib)
            return speed

        return contestant

    speed = take_turns({
        "plain": loops.plain(images, SMALL, "cpu"),
        "tuned": loops.tuned(images, SMALL, "cpu"),
        "engine": engine_of(cores, 1),
        "threads": engine_of(1, cores),
        **{f"pack of {runs}": engine_of(cores, 1, runs) for runs in (1, 2, 8)},
    })  # fmt: skip
    flops = engine.step_flops(SMALL)
    rates = {name: loops.matmul_rate("cpu", getattr(torch, name)) for name in ("float32", "bfloat16")}
    grids = [(plain_run_seconds(images, SMALL, "cpu"), grid_seconds(cells(SMALL, 16), "cpu")) for _ in range(2)]
    plain_run, grid16 = (statistics.median(values) for values in zip(*grids, strict=True))
    short = dataclasses.replace(SMALL, epochs=4)
    cost = {count: grid_seconds(cells(short, count), "cpu") for count in CELLS}
    return {
        "cpu.plain_images_per_second": speed["plain"],
        "cpu.tuned_images_per_second": speed["tuned"],
        "cpu.engine_images_per_second": speed["engine"],
        "cpu.engine_over_plain": speed["engine"] / speed["plain"],
        "cpu.engine_over_tuned": speed["engine"] / speed["tuned"],
        "cpu.processes_over_threads": speed["engine"] / speed["threads"],
        **{f"cpu.engine_over_pack_of_{runs}": speed["engine"] / speed[f"pack of {runs}"] for runs in (1, 2, 8)},
        "cpu.grid_runs_per_hour": 16 * 3600 / grid16,
        "cpu.grid_runs_per_hour_over_plain": 16 * plain_run / grid16,
        "cpu.fraction_of_matmul": speed["engine"] * flops / rates["float32"],
        "cpu.fraction_of_bf16_matmul": speed["engine"] * flops / rates["bfloat16"],
        "cpu.matmul_gflops": rates["float32"] / 1e9,
        "cpu.bf16_matmul_gflops": rates["bfloat16"] / 1e9,
        "cpu.peak_memory_gib": max(memory),
        **{f"scale.seconds_{count}_cells": seconds for count, seconds in cost.items()},
        "scale.cells_64_over_4": cost[64] / cost[4],
    }


def gpu_numbers(images: data.Images, device: str = "cuda") -> dict[str, float]:
    """The GPU's part of the table."""
    numbers: dict[str, float] = {}
    rate = loops.matmul_rate(device, torch.bfloat16)
    numbers["gpu.matmul_tflops"] = rate / 1e12
    for name, run in GPU_NETS.items():
        alone = loops.ours(images, [run], device)(SECONDS)
        numbers[f"gpu.epoch_seconds.{name}"] = 50_000 / alone
        numbers[f"gpu.fraction_of_matmul.{name}"] = alone * engine.step_flops(run) / rate
    run = GPU_NETS["2x32d"]
    speed = take_turns({
        "plain": loops.plain(images, run, device),
        "tuned": loops.tuned(images, run, device),
        "engine": loops.ours(images, [run], device),
    }, rounds=2)  # fmt: skip
    numbers["gpu.engine_over_plain"] = speed["engine"] / speed["plain"]
    numbers["gpu.engine_over_tuned"] = speed["engine"] / speed["tuned"]
    small = take_turns({
        "plain": loops.plain(images, GPU_SMALL, device),
        "tuned": loops.tuned(images, GPU_SMALL, device),
        "engine": loops.ours(images, cells(GPU_SMALL, 16), device),
    }, rounds=2)  # fmt: skip
    numbers["gpu.small_engine_over_plain"] = small["engine"] / small["plain"]
    numbers["gpu.small_engine_over_tuned"] = small["engine"] / small["tuned"]
    grid16 = grid_seconds(cells(GPU_SMALL, 16), device, 16)
    numbers["gpu.grid_runs_per_hour"] = 16 * 3600 / grid16
    numbers["gpu.grid_runs_per_hour_over_plain"] = 16 * plain_run_seconds(images, GPU_SMALL, device) / grid16
    if device.startswith("cuda"):
        numbers["gpu.peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return numbers


def pack_numbers(images: data.Images, device: str = "cuda", seconds: float = 4.0) -> dict[str, float]:
    """Images per second of variants A to E for each network: what decides how runs are laid on a GPU.

    A eager, B compiled, C compiled and captured, D several captured packs on streams, E R runs in grouped convolutions.
    """
    numbers: dict[str, float] = {}
    nets = {"cnn": GPU_SMALL, **GPU_NETS}
    for net, run in nets.items():
        variants: dict[str, tuple[int, int, bool, bool]] = {  # packs, runs of a pack, compiled, captured
            "A eager": (1, 1, False, False),
            "B compiled": (1, 1, True, False),
            "C' captured": (1, 1, False, True),
            "C compiled, captured": (1, 1, True, True),
        }
        for count in TOGETHER:
            variants[f"D {count} streams"] = (count, 1, True, True)
            variants[f"E {count} runs"] = (1, count, True, True)
        for name, (packs, runs, compiled, captured) in variants.items():
            try:
                numbers[f"packs.{net}.{name}"] = _pack_speed(
                    images, [cells(run, runs)] * packs, device, seconds, compiled=compiled, captured=captured
                )
            except torch.OutOfMemoryError:
                numbers[f"packs.{net}.{name}"] = 0.0
            engine.release()
            print(f"  {net:8} {name:24} {numbers[f'packs.{net}.{name}']:12.0f} images/s", flush=True)
    return numbers


def _pack_speed(images: data.Images, packs: list[list[RunConfig]], device: str, seconds: float, **options) -> float:
    part = data.split(packs[0][0].train_size)[0]
    x = images.train_x[part].permute(0, 2, 3, 1).contiguous().to(device)
    y = images.train_y[part].to(device)
    return loops.of_packs([loops.Pack(runs, x, y, device, **options) for runs in packs], device)(seconds)


def main() -> None:
    """Measure, print, and write build/bench.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--packs", action="store_true", help="only the ways to lay runs on a GPU")
    args = parser.parse_args()
    if args.packs and not torch.cuda.is_available():
        sys.exit("bench: --packs needs a CUDA device")
    images = data.find(allow_download=False)
    device = engine.default_device()
    where = {
        "cpu": engine.device_name("cpu"), "cores": len(workers.slots("cpu")), "device": engine.device_name(device),
        "torch": torch.__version__, "images": images.source, "commit": store.commit(),
        "profile": PROFILES["cpu"].about,
    }  # fmt: skip
    if args.packs:
        numbers = pack_numbers(images)
    else:
        numbers = (gpu_numbers(images) if device == "cuda" else {}) | cpu_numbers(images) | store_numbers()
    Path("build").mkdir(exist_ok=True)
    Path("build/bench.json").write_text(json.dumps({**where, **numbers}, indent=1) + "\n")
    print(f"{SMALL.network} width {SMALL.width}, batch {SMALL.batch_size}, {where}")
    for name, value in numbers.items():
        print(f"  {name:36} {value:12.4g}")


if __name__ == "__main__":
    main()
