"""Train packs of runs: one path for a single run and for R runs of the same shape; evaluation, curves, checkpoints.

Nothing is read back from the device within an epoch; a loss that is no longer finite is found at its end.
"""

import base64
import hashlib
import io
import math
import os
import platform
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from decoupled import data, models
from decoupled.pack import Pack, check_shapes, network_of
from decoupled.runs import RunConfig

EVAL_BATCH = {"cpu": 128, "cuda": 2500, "mps": 500}  # images of one run; part of no result beyond round-off
FEWEST = {"cpu": 2}  # runs of a pack: with one group, convolutions take other kernels there, which round differently


class OutOfTime(Exception):
    """The time given to `train` is over; its checkpoint holds what was done."""


def default_device() -> str:
    """The device that profile `gpu` trains on: cuda where it works, else Apple's mps, else cpu."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def default_profile() -> str:
    """What profile `auto` stands for here: gpu with CUDA, t4 where that GPU has no bfloat16 (Colab's T4), else cpu."""
    if default_device() != "cuda":
        return "cpu"
    return "gpu" if torch.cuda.is_bf16_supported(including_emulation=False) else "t4"


def device_name(device: str) -> str:
    """The processor that made a result, as recorded beside it."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


class Parts(NamedTuple):
    """The images of a run on its device: pixels uint8 [N, H, W, 3], labels int64 [N]."""

    train_x: Tensor
    train_y: Tensor
    val_x: Tensor
    val_y: Tensor
    test_x: Tensor
    test_y: Tensor


class Ready(NamedTuple):
    """What the last call of `train` leaves for the next: a compiled and captured pack, and the images on the device."""

    images: data.Images
    network: tuple[object, ...]
    pack: Pack
    parts: Parts


_ready: Ready | None = None


def release() -> None:
    """Forget the pack that was trained last, and give its memory back."""
    global _ready
    _ready = None
    if torch.cuda.is_available():
        torch.compiler.reset()  # or the number of recompilations it allows would run out
        torch.cuda.empty_cache()


def _prepare(runs: list[RunConfig], images: data.Images, device: str) -> tuple[Pack, Parts]:
    """A pack at the beginning of these runs; that of the last call if its network serves them too."""
    global _ready
    network = (*network_of(runs[0]), len(runs), device)
    if _ready is not None and _ready.images is images and _ready.network == network:
        _ready.pack.load(runs)
        return _ready.pack, _ready.parts
    release()  # two packs need not fit
    if device.startswith("cuda"):  # the same kernels every time: a resumed run must end with the same bits
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # float32 means float32
    train_part, val_part = data.split(runs[0].train_size)
    pixels = (images.train_x[train_part], images.train_x[val_part], images.test_x)
    labels = (images.train_y[train_part], images.train_y[val_part], images.test_y)
    x, y = ([t.to(device) for t in ts] for ts in ([p.permute(0, 2, 3, 1).contiguous() for p in pixels], labels))
    parts = Parts(x[0], y[0], x[1], y[1], x[2], y[2])
    pack = Pack(runs, parts.train_x, parts.train_y, device)
    _ready = Ready(images, network, pack, parts)
    return pack, parts


def train(
    runs: list[RunConfig],
    images: data.Images,
    device: str = "cpu",
    checkpoint: Path | None = None,
    checkpoint_s: float = 300.0,
    time_limit: float | None = None,
    epoch_done: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Train the runs as one pack and return their results, in the same order.

    A result holds test_error and val_error (per cent, final; nan if diverged or, for val_error, if there is no
    validation split), train_loss (mean cross-entropy of the last epoch's batches, nats), diverged_step (-1, or the
    update at which the loss ceased to be finite), loss_curve (per epoch), eval_epochs, val_curve, test_curve,
    decay_first_step (measured fraction of the weights' norm), probabilities (class probabilities of the test images
    after each epoch of `snapshots`, as `packed` by this module), seconds.

    `checkpoint` names a file that is written at most every `checkpoint_s` seconds, at the end of an epoch, and read
    if it exists and belongs to these runs; a resumed pack ends with the same bits on the same kind of device. At the
    first end of an epoch after `time_limit` seconds it is written too, and OutOfTime raised. `epoch_done` is called at
    the end of every epoch.

    Raises ValueError if the runs do not share a shape or the images are not those they ask for, torch.OutOfMemoryError
    if the device's memory does not hold the pack.
    """
    started = time.monotonic()
    check_shapes(runs)
    asked, runs = len(runs), _enough(runs, device)
    first, batch = runs[0], EVAL_BATCH[device.split(":")[0]]
    if images.source != first.dataset:
        raise ValueError(f"these runs ask for {first.dataset} images, got {images.source}")
    pack, parts = _prepare(runs, images, device)
    eval_epochs = sorted({round(first.epochs * (i + 1) / first.evaluations) for i in range(first.evaluations)})
    snapshots = first.snapshot_epochs()
    book = Book(runs)
    if checkpoint is not None and checkpoint.exists():
        book.load(checkpoint, pack)
    spent, saved = book.seconds, started
    drawn = pack.draw(runs, book.epoch)
    for epoch in range(book.epoch, first.epochs):
        pack.begin(epoch, drawn)
        if epoch == 0:
            before = pack.theta.clone()
            size = pack.step()
            book.decay_first_step = pack.decay_of(before)
            pack.epoch(done=size)
        else:
            pack.epoch()
        more = epoch + 1 < first.epochs
        if more:
            drawn = pack.draw(runs, epoch + 1)  # while a GPU still works on this one
        book.close_epoch(epoch, epoch * first.steps_per_epoch, pack.losses)
        if epoch + 1 in eval_epochs:
            book.val.append(pack.errors(parts.val_x, parts.val_y, batch))
            book.test.append(pack.errors(parts.test_x, parts.test_y, batch))
        if epoch + 1 in snapshots:
            book.probabilities.append([packed(p) for p in pack.probabilities(parts.test_x, batch)])
        epoch_done()
        now = time.monotonic()
        book.seconds = spent + now - started
        if min(book.diverged) >= 0:
            break
        out_of_time = more and time_limit is not None and now - started >= time_limit
        if checkpoint is not None and more and (out_of_time or now - saved >= checkpoint_s):
            saved = now
            book.save(checkpoint, pack)
        if out_of_time:
            raise OutOfTime(f"stopped after {epoch + 1} of {first.epochs} epochs: the time is over")
    return [result | {"seconds": book.seconds / asked} for result in book.results(pack, eval_epochs)[:asked]]


def _enough(runs: list[RunConfig], device: str) -> list[RunConfig]:
    """The runs, or a single one beside a copy of itself where its bits would depend on whether it stands alone."""
    return runs * FEWEST.get(device, 1) if len(runs) == 1 else runs


def seconds_per_image(run: RunConfig, device: str, enough_s: float = 2.0) -> float:
    """Time of a training step per image and run, measured on images of one colour here for about `enough_s`."""
    if device == "cpu":
        torch.set_num_threads(1)
    x = torch.zeros(run.train_size, 32, 32, 3, dtype=torch.uint8, device=device)
    y = torch.zeros(run.train_size, dtype=torch.int64, device=device)
    runs = _enough([run], device)
    pack = Pack(runs, x, y, device, compiled=False)  # compiling takes longer than all the rest
    size = len(runs) * pack.step()  # the first step also pays for choosing kernels
    _wait(device)
    started, done = time.monotonic(), 0
    while done == 0 or time.monotonic() - started < enough_s:
        pack.s.zero_()
        pack.step()
        _wait(device)
        done += 1
    return (time.monotonic() - started) / (done * size)


def step_flops(run: RunConfig) -> float:
    """FLOP per image of a training step, forward and backward, counted by torch (2 per multiply-add)."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model = models.NETWORKS[run.network](run.width)
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(2, 3, 32, 32)).sum().backward()
    return counter.get_total_flops() / 2


def packed(probabilities: Tensor) -> str:
    """Class probabilities [N, K] as text: 16-bit fractions of 1, compressed; `claims.unpacked` reads it."""
    fractions = (probabilities.double() * 65535).round().cpu().numpy().astype("<u2")
    return base64.b64encode(zlib.compress(fractions.tobytes())).decode()


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


class Book:
    """What a pack has to show so far; lists over epochs or evaluations hold one number per run."""

    FIELDS = ("keys", "epoch", "seconds", "diverged", "loss", "val", "test", "decay_first_step", "probabilities")

    def __init__(self, runs: list[RunConfig]) -> None:
        self.keys = [run.key() for run in runs]
        self.epoch = 0  # finished epochs
        self.seconds = 0.0
        self.diverged = [-1] * len(runs)
        self.loss: list[list[float]] = []
        self.val: list[list[float]] = []
        self.test: list[list[float]] = []
        self.decay_first_step: list[float] = []
        self.probabilities: list[list[str]] = []

    def close_epoch(self, epoch: int, begin: int, losses: Tensor) -> None:
        """Take in the losses [steps, R] of an epoch whose first update was number `begin`."""
        losses = losses.cpu().double()  # the one transfer of the epoch
        for r, finite in enumerate(torch.isfinite(losses).T):
            if self.diverged[r] < 0 and not finite.all():
                self.diverged[r] = begin + int((~finite).nonzero()[0])
        self.loss.append(losses.mean(0).tolist())
        self.epoch = epoch + 1

    def results(self, pack: Pack, eval_epochs: list[int]) -> list[dict[str, Any]]:
        """One result per run, as `train` describes it."""
        out = []
        for r in range(len(self.keys)):
            mine = pack.theta[pack.run_of == r]
            if self.diverged[r] < 0 and (not torch.isfinite(mine).all() or math.isnan(self.test[-1][r])):
                self.diverged[r] = pack.first.steps  # the last update itself broke the weights
            bad = self.diverged[r] >= 0
            curves = [[float("nan") if bad else row[r] for row in rows] for rows in (self.val, self.test)]
            out.append({
                "test_error": float("nan") if bad else curves[1][-1],
                "val_error": float("nan") if bad else curves[0][-1],
                "train_loss": float("nan") if bad else self.loss[-1][r],
                "diverged_step": self.diverged[r],
                "loss_curve": [row[r] for row in self.loss],
                "eval_epochs": eval_epochs[: len(self.val)],
                "val_curve": curves[0],
                "test_curve": curves[1],
                "decay_first_step": self.decay_first_step[r],
                "probabilities": [row[r] for row in self.probabilities],
            })  # fmt: skip
        return out

    def save(self, path: Path, pack: Pack) -> None:
        """Write everything a resumed run needs; the file is complete or not there."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        content = io.BytesIO()
        torch.save({"book": {name: getattr(self, name) for name in self.FIELDS}, "pack": pack.tensors()}, content)
        try:  # torch.load checks no sum
            part.write_bytes(hashlib.sha256(content.getbuffer()).digest() + content.getbuffer())
            os.replace(part, path)
        except OSError:  # on a full disk, half a file takes room that others need
            part.unlink(missing_ok=True)
            raise

    def load(self, path: Path, pack: Pack) -> None:
        """Take up a checkpoint; one that is unreadable or belongs to other runs is passed over."""
        content = path.read_bytes()
        if hashlib.sha256(content[32:]).digest() != content[:32]:
            return
        saved = torch.load(io.BytesIO(content[32:]), map_location=pack.device, weights_only=True)
        if saved["book"].keys() != set(self.FIELDS) or saved["book"]["keys"] != self.keys:
            return
        for name in self.FIELDS:
            setattr(self, name, saved["book"][name])
        pack.put(saved["pack"])
