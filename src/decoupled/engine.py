"""Train runs: one path for a single run and for a pack of R runs of the same shape.

Axes: R runs, B images of a batch, N training images, P parameters of all runs together, S updates, K classes.

All parameters of a pack lie in one vector theta [P], as in the released code, so that an update rule of `optim` is a
handful of operations whatever the network. Everything random about a run (initialisation, order of images,
augmentation, shake coefficients) is drawn on the CPU from its own seed and the epoch's number: a run's result depends
neither on its neighbours in the pack nor on the device, except for round-off, and a checkpoint needs no generator
state. Nothing is read back from the device within an epoch; a loss that is no longer finite is found at its end.
"""

import hashlib
import io
import math
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from decoupled import data, models, optim, schedules
from decoupled.plan import KINDS, RunConfig

EVAL_BATCH = 500  # images; part of no result beyond round-off
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.float32}  # of the master weights


def default_device() -> str:
    """The device that profile `auto` trains on: cuda where it works, else cpu."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_name(device: str) -> str:
    """The processor that made a result, as recorded beside it."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def random_stream(run: RunConfig, purpose: str, epoch: int = 0) -> torch.Generator:
    """The CPU generator of one run, purpose and epoch; the same for every algorithm, so that runs pair by seed."""
    digest = hashlib.sha256(f"{run.seed}/{purpose}/{epoch}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


class Pack:
    """R runs of one shape on one device: network, flat parameters, optimizer state and schedules."""

    def __init__(self, runs: list[RunConfig], device: str) -> None:
        if not runs or len({run.shape() for run in runs}) != 1:
            raise ValueError("a pack needs at least one run, all of the same shape (RunConfig.shape)")
        self.runs, self.first, self.device = runs, runs[0], device
        self.dtype = DTYPES[self.first.precision]
        first, R = self.first, len(runs)
        init_seeds = [random_stream(run, "init").initial_seed() for run in runs]
        model = models.build(first.network, first.width, init_seeds)
        self.model = model.to(device, self.dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._flatten()
        self.rule = optim.RULES[first.algorithm]
        self.state = {name: torch.zeros_like(self.theta) for name in self.rule.buffers}
        alpha = torch.tensor([run.alpha for run in runs], dtype=self.dtype, device=device)
        self.hyper: dict[str, optim.Hyper] = {"alpha": self._spread(alpha)}
        if first.algorithm.startswith("sgd"):
            self.hyper["beta"] = first.beta1
        else:
            self.hyper |= {"beta1": first.beta1, "beta2": first.beta2, "eps": first.eps}
        self.eta, self.lam = _tables(runs, self.dtype, device)  # each [S, R]
        self.losses = torch.zeros(first.steps_per_epoch, R, dtype=self.dtype, device=device)
        self.decay_first_step = [0.0] * R

    def _flatten(self) -> None:
        """Move every parameter and gradient into the vectors theta and grad [P], as views in channels-last order."""
        parameters = dict(self.model.named_parameters())
        total, R = sum(p.numel() for p in parameters.values()), len(self.runs)
        self.theta = torch.empty(total, dtype=self.dtype, device=self.device)
        self.grad = torch.zeros_like(self.theta)
        run_of, decays = [], []
        kinds, offset = optim.parameter_kinds(self.model), 0
        chosen = [set(run.decayed.split("+")) for run in self.runs]
        for name, p in parameters.items():
            part = slice(offset, offset + p.numel())
            old, offset = p.detach().clone(), offset + p.numel()
            p.data, p.grad = (_view(vector[part], p.shape) for vector in (self.theta, self.grad))
            p.data.copy_(old)
            run_of.append(torch.arange(R).repeat_interleave(p.numel() // R))
            decays.append(torch.tensor([float(kinds[name] in c) for c in chosen]).repeat_interleave(p.numel() // R))
        self.run_of = torch.cat(run_of).to(self.device)  # [P]: which run an element belongs to
        everything = all(run.decayed == KINDS for run in self.runs)
        self.mask = None if everything else torch.cat(decays).to(self.device, self.dtype)  # [P]: 1 decays, 0 does not

    def _spread(self, per_run: Tensor) -> Tensor:
        """[R] -> something that broadcasts against theta [P]: a scalar for one run, else each element's own value."""
        return per_run[0] if len(self.runs) == 1 else per_run[self.run_of]

    def forward(self, x: Tensor, shake: Tensor | None = None) -> Tensor:
        """Logits [R, B, K] in at least float32 for images [B, R*3, H, W]."""
        half = self.first.precision == "bfloat16"
        with torch.autocast(self.device.split(":")[0], torch.bfloat16) if half else nullcontext():
            return self.model(x, shake).to(self.dtype)

    def step(self, s: int, x: Tensor, y: Tensor, shake: Tensor | None) -> None:
        """Update number s (from 0) on images x [B, R*3, H, W] and labels y [R, B]; writes the losses of this step."""
        logits = self.forward(x, shake)
        loss = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").reshape(y.shape).mean(1)  # [R]
        self.grad.zero_()
        loss.sum().backward()  # the sum keeps each run's gradient that of its own mean loss
        self.losses[s % self.first.steps_per_epoch] = loss.detach()
        with torch.no_grad():
            lam = self._spread(self.lam[s])
            lam = lam if self.mask is None else lam * self.mask
            theta, state = self._update(s, lam)
            if s == 0:  # a decay that is silently zero would remove the effect under study: measure it
                change = theta - self._update(s, torch.zeros_like(lam))[0]
                mine = [self.run_of == r for r in range(len(self.runs))]
                self.decay_first_step = [_norm(change[m]) / _norm(self.theta[m]) for m in mine]
            self.theta.copy_(theta)
            self.state = state

    def _update(self, s: int, lam: Tensor) -> tuple[Tensor, optim.State]:
        eta = self._spread(self.eta[s])
        return self.rule.update(self.theta, self.grad, self.state, s + 1, eta=eta, lam=lam, **self.hyper)

    def errors(self, x: Tensor, y: Tensor) -> list[float]:
        """Error in per cent of each run on images x uint8 [N, 3, H, W] with labels y [N]; nan where there are none."""
        if not len(x):
            return [float("nan")] * len(self.runs)
        self.model.eval()
        wrong = torch.zeros(len(self.runs), dtype=torch.int64, device=self.device)
        finite = torch.ones(len(self.runs), dtype=torch.bool, device=self.device)
        with torch.no_grad():
            for part, labels in zip(x.split(EVAL_BATCH), y.split(EVAL_BATCH), strict=True):
                batch = data.normalize(part, self.dtype).contiguous(memory_format=torch.channels_last)
                logits = self.forward(batch.repeat(1, len(self.runs), 1, 1))
                wrong += (logits.argmax(2) != labels).sum(1)
                finite &= logits.isfinite().all(2).all(1)
        self.model.train()
        return (100 * wrong.double() / len(x)).where(finite, float("nan")).tolist()


def _norm(x: Tensor) -> float:
    return x.double().norm().item()


def _view(part: Tensor, shape: torch.Size) -> Tensor:
    """A slice of a flat vector as a parameter; four axes in channels-last order, which convolutions like best."""
    if len(shape) != 4:
        return part.view(shape)
    n, c, h, w = shape
    return part.view(n, h, w, c).permute(0, 3, 1, 2)


def _tables(runs: list[RunConfig], dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """eta and lambda of every update and run, [S, R] each; normalized decay follows the length of its cycle."""
    etas, lams = [], []
    for run in runs:
        schedule = schedules.parse(run.schedule, run.epochs, run.steps_per_epoch)
        etas.append([schedule.eta(s) for s in range(run.steps)])
        if run.decay_unit == "raw":
            lams.append([run.decay] * run.steps)
            continue
        lengths = [schedule.cycle(s)[1] / run.steps_per_epoch for s in range(run.steps)]  # epochs
        lams.append([optim.normalized(run.decay, run.batch_size, run.train_size, T) for T in lengths])
    return tuple(torch.tensor(t, dtype=dtype).T.contiguous().to(device) for t in (etas, lams))  # type: ignore[return-value]


def _batches(pack: Pack, x: Tensor, y: Tensor, epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """The batches of one epoch: images [B, R*3, H, W], labels [R, B], shake coefficients [L, 2, B, R] or None."""
    first, device, N = pack.first, pack.device, len(x)
    orders, draws, shakes = [], [], []
    for run in pack.runs:
        orders.append(torch.randperm(N, generator=random_stream(run, "order", epoch)))
        draws.append(data.draw(N, first.augment, random_stream(run, "augment", epoch)))
        L = pack.model.shake_blocks
        shakes.append(torch.rand(L, 2, N, generator=random_stream(run, "shake", epoch)) if L else None)
    order = torch.stack(orders).to(device)  # [R, N]
    shake = None if shakes[0] is None else torch.stack(shakes, 3).to(device)  # type: ignore[arg-type]
    draws = [None if d is None else _each(d, lambda v: v.to(device)) for d in draws]
    for start in range(0, N, first.batch_size):
        part = slice(start, start + first.batch_size)
        images = []
        for r, d in enumerate(draws):
            batch = data.normalize(x[order[r, part]], pack.dtype).contiguous(memory_format=torch.channels_last)
            images.append(batch if d is None else data.augment(batch, _each(d, lambda v: v[part])))  # noqa: B023
        joined = images[0] if len(images) == 1 else torch.cat(images, 1)
        yield joined, y[order[:, part]], None if shake is None else shake[:, :, part]


def _each(draws: data.Draws, change: Callable[[Tensor], Tensor]) -> data.Draws:
    return data.Draws(*(None if v is None else change(v) for v in draws))  # type: ignore[arg-type]


def train(
    runs: list[RunConfig],
    images: data.Images,
    device: str = "cpu",
    checkpoint: Path | None = None,
    checkpoint_s: float = 300.0,
) -> list[dict[str, Any]]:
    """Train the runs as one pack and return their results, in the same order.

    A result holds test_error and val_error (per cent, final; nan if diverged or, for val_error, if there is no
    validation split), train_loss (mean cross-entropy of the last epoch's batches, nats), diverged_step (-1, or the
    update at which the loss ceased to be finite), loss_curve (per epoch), eval_epochs, val_curve, test_curve,
    decay_first_step (measured fraction of the weights' norm), seconds.

    `checkpoint` names a file that is written at most every `checkpoint_s` seconds, at the end of an epoch, and read
    if it exists and belongs to these runs; a resumed pack ends with the same bits on the same kind of device.

    Raises ValueError if the runs do not share a shape or the images are not those they ask for.
    """
    started = time.monotonic()
    pack, first = Pack(runs, device), runs[0]
    if images.source != first.dataset:
        raise ValueError(f"these runs ask for {first.dataset} images, got {images.source}")
    train_part, val_part = data.split(first.train_size)
    # channels-last already as bytes: what is picked out of them needs no copy into that order, batch by batch
    x_train, x_val, x_test = (
        x.to(device, memory_format=torch.channels_last)
        for x in (images.train_x[train_part], images.train_x[val_part], images.test_x)
    )
    y_train, y_val, y_test = (
        y.to(device) for y in (images.train_y[train_part], images.train_y[val_part], images.test_y)
    )
    eval_epochs = sorted({round(first.epochs * (i + 1) / first.evaluations) for i in range(first.evaluations)})
    book = Book(runs)
    if checkpoint is not None and checkpoint.exists():
        book.load(checkpoint, pack)
    spent, saved = book.seconds, started
    pack.model.train()
    for epoch in range(book.epoch, first.epochs):
        begin = epoch * first.steps_per_epoch
        for s, batch in enumerate(_batches(pack, x_train, y_train, epoch), start=begin):
            pack.step(s, *batch)
        book.close_epoch(epoch, begin, pack.losses)
        if epoch + 1 in eval_epochs:
            book.val.append(pack.errors(x_val, y_val))
            book.test.append(pack.errors(x_test, y_test))
        book.seconds = spent + time.monotonic() - started
        if min(book.diverged) >= 0:
            break
        if checkpoint is not None and time.monotonic() - saved >= checkpoint_s and epoch + 1 < first.epochs:
            saved = time.monotonic()
            book.save(checkpoint, pack)
    return book.results(pack, eval_epochs)


def seconds_per_image(run: RunConfig, device: str, steps: int = 10, enough_s: float = 5.0) -> float:
    """Time of a training step per image, measured on random images in this process: `steps` steps, or `enough_s`."""
    if device == "cpu":
        torch.set_num_threads(1)
    pack = Pack([run], device)
    pack.model.train()
    x = torch.randn(run.batch_size, 3, 32, 32, dtype=pack.dtype, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.zeros(1, run.batch_size, dtype=torch.long, device=device)
    L = pack.model.shake_blocks
    shake = torch.full((L, 2, run.batch_size, 1), 0.5, dtype=pack.dtype, device=device) if L else None
    pack.step(0, x, y, shake)  # the first step also pays for choosing kernels
    _wait(device)
    started, done = time.monotonic(), 0
    while done < steps and (done == 0 or time.monotonic() - started < enough_s):
        pack.step(done % run.steps, x, y, shake)
        _wait(device)
        done += 1
    return (time.monotonic() - started) / (done * run.batch_size)


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


class Book:
    """What a pack has to show so far; lists over epochs or evaluations hold one number per run."""

    FIELDS = ("keys", "epoch", "seconds", "diverged", "loss", "val", "test", "decay_first_step")

    def __init__(self, runs: list[RunConfig]) -> None:
        self.keys = [run.key() for run in runs]
        self.epoch = 0  # finished epochs
        self.seconds = 0.0
        self.diverged = [-1] * len(runs)
        self.loss: list[list[float]] = []
        self.val: list[list[float]] = []
        self.test: list[list[float]] = []
        self.decay_first_step: list[float] = []

    def close_epoch(self, epoch: int, begin: int, losses: Tensor) -> None:
        """Take in the losses [steps, R] of an epoch whose first update was number `begin`."""
        losses = losses.double().cpu()  # the one transfer of the epoch
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
                "decay_first_step": pack.decay_first_step[r],
                "seconds": self.seconds / len(self.keys),
            })  # fmt: skip
        return out

    def save(self, path: Path, pack: Pack) -> None:
        """Write everything a resumed run needs; the file is complete or not there."""
        self.decay_first_step = pack.decay_first_step
        tensors = {"theta": pack.theta, "buffers": dict(pack.model.named_buffers()), "state": pack.state}
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        content = io.BytesIO()
        torch.save({"book": {name: getattr(self, name) for name in self.FIELDS}, **tensors}, content)
        part.write_bytes(hashlib.sha256(content.getbuffer()).digest() + content.getbuffer())  # torch.load checks no sum
        os.replace(part, path)

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
        pack.theta.copy_(saved["theta"])
        pack.state = saved["state"]
        for name, buffer in pack.model.named_buffers():
            buffer.copy_(saved["buffers"][name])
        pack.decay_first_step = self.decay_first_step
