"""Measure the engine against the loop a user would write: same network, images, batch and hardware, in one run.

    python benchmarks/bench.py        table on the screen, numbers in build/bench.json

Ratios inside one call are what counts; absolute speeds belong to the machine. The contestants take turns (A B A B ...)
and medians are reported, so that a machine that slows down slows both.
"""

import json
import multiprocessing
import os
import resource
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from decoupled import data, engine, models, store, sweep
from decoupled.plan import PROFILES, cell

ROUNDS = 3
RUN = cell("cpu", "cifar10", "adamw", 0.004, 0.004, "cosine", seed=0)
N = int(PROFILES["cpu"].setting["train_size"])


class Plain(torch.utils.data.Dataset):
    """The usual map-style data set: one image at a time, normalized and flipped on the fly."""

    def __init__(self, images: data.Images) -> None:
        self.x, self.y = images.train_x[:N], images.train_y[:N]
        self.mean, self.std = (torch.tensor(v)[:, None, None] for v in (data.MEAN, data.STD))

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = (self.x[i].float() - self.mean) / self.std
        return x.flip(-1) if torch.rand(()) < 0.5 else x, self.y[i]


def plain_epochs(images: data.Images, epochs: int) -> float:
    """Images per second of a plain loop: DataLoader with workers, eager float32, torch.optim.AdamW, all cores."""
    torch.set_num_threads(os.cpu_count() or 1)
    model: nn.Module = models.build(RUN.network, RUN.width, [0])
    optimizer = torch.optim.AdamW(model.parameters(), lr=RUN.alpha, weight_decay=RUN.decay / RUN.alpha)
    loader = torch.utils.data.DataLoader(
        Plain(images), RUN.batch_size, shuffle=True, num_workers=os.cpu_count() or 1, persistent_workers=True
    )
    for _ in zip(range(3), loader, strict=False):
        pass  # the workers are up
    started = time.monotonic()
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x)[0], y).backward()
            optimizer.step()
    return epochs * N / (time.monotonic() - started)


def _engine_worker(epochs: int, threads: int, barrier, out) -> None:
    torch.set_num_threads(threads)
    x, y = data.find(allow_download=False, say=lambda _: None)[:2]
    pack = engine.Pack([RUN], "cpu")
    pack.model.train()
    part = data.split(N)[0]
    x, y = x[part].contiguous(memory_format=torch.channels_last), y[part]
    for s, batch in zip(range(5), engine._batches(pack, x, y, 0), strict=False):
        pack.step(s, *batch)
    barrier.wait()
    started = time.monotonic()
    for epoch in range(epochs):
        for s, batch in enumerate(engine._batches(pack, x, y, epoch)):
            pack.step(s, *batch)
    out.put((epochs * N / (time.monotonic() - started), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20))


def engine_epochs(epochs: int, processes: int, threads: int) -> tuple[float, float]:
    """(images per second, largest resident GiB) of `processes` engine processes of `threads` threads each."""
    context = multiprocessing.get_context("spawn")
    barrier, out = context.Barrier(processes), context.Queue()
    workers = [context.Process(target=_engine_worker, args=(epochs, threads, barrier, out)) for _ in range(processes)]
    for worker in workers:
        worker.start()
    results = [out.get() for _ in workers]
    for worker in workers:
        worker.join()
    return sum(speed for speed, _ in results), sum(memory for _, memory in results)


def matmul_rate(size: int = 1024, seconds: float = 1.0) -> float:
    """FLOP/s of a float32 matrix product on all cores: the ceiling of this machine, as far as torch reaches it."""
    torch.set_num_threads(os.cpu_count() or 1)
    a = torch.randn(size, size)
    a @ a
    started, count = time.monotonic(), 0
    while time.monotonic() - started < seconds:
        a @ a
        count += 1
    return count * 2 * size**3 / (time.monotonic() - started)


def step_flops() -> float:
    """FLOP per image of a training step, counted by torch (2 per multiply-add, forward and backward)."""
    from torch.utils.flop_counter import FlopCounterMode

    model = models.build(RUN.network, RUN.width, [0])
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(1, 3, 32, 32).repeat(2, 1, 1, 1)).sum().backward()
    return counter.get_total_flops() / 2


def store_seconds(count: int = 200) -> float:
    """Seconds to write and read back one result."""
    import tempfile

    result: dict = dict.fromkeys(store.NUMBERS, 1.0) | {name: [1.0] * 25 for name in store.CURVES}
    with tempfile.TemporaryDirectory() as folder:
        local = store.Store(folder)
        made = store.provenance("bench", torch.__version__, "0" * 16)
        started = time.monotonic()
        for seed in range(count):
            local.write(cell("cpu", "cifar10", "adamw", 0.004, 0.004, "cosine", seed), result, made)
        local.frame()
        return (time.monotonic() - started) / count


def main() -> None:
    """Measure, print, and write build/bench.json."""
    images = data.find(allow_download=False)
    cores = sweep.slots("cpu")
    plain, ours, threaded, memory = [], [], [], []
    for _ in range(ROUNDS):
        plain.append(plain_epochs(images, 3))
        speed, gib = engine_epochs(8, processes=cores, threads=1)
        ours.append(speed)
        memory.append(gib)
        threaded.append(engine_epochs(8, processes=1, threads=cores)[0])
    matmul = matmul_rate()
    numbers = {
        "cpu.plain_images_per_second": statistics.median(plain),
        "cpu.engine_images_per_second": statistics.median(ours),
        "cpu.engine_over_plain": statistics.median(ours) / statistics.median(plain),
        "cpu.processes_over_threads": statistics.median(ours) / statistics.median(threaded),
        "cpu.fraction_of_matmul": statistics.median(ours) * step_flops() / matmul,
        "cpu.matmul_gflops": matmul / 1e9,
        "cpu.peak_memory_gib": max(memory),
        "store.seconds_per_run": store_seconds(),
    }
    where = {"device": engine.device_name("cpu"), "cores": cores, "torch": torch.__version__, "images": images.source}
    Path("build").mkdir(exist_ok=True)
    Path("build/bench.json").write_text(json.dumps({**where, **numbers}, indent=1) + "\n")
    print(f"{RUN.network} width {RUN.width}, batch {RUN.batch_size}, {where}")
    for name, value in numbers.items():
        print(f"  {name:32} {value:12.4g}")


if __name__ == "__main__":
    sys.exit(main())
