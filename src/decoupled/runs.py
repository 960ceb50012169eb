"""The identity of a run. No input or output.

A `RunConfig` is the whole identity of a run: equal configurations give equal results (to the bit on the same kind of
machine), and nothing that changes a result is kept anywhere else. Its key names the run's file in the store.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from decoupled import schedules

SEMANTICS = 1  # raise it when the same fields begin to mean different numbers; results of older semantics are stale
ADDED = {("snapshots", "")}  # fields younger than published results, with the value that those were made with

ALGORITHMS = ("sgd", "sgdw", "adam", "adamw", "sgd_algorithm1", "sgdw_algorithm1")  # rows of optim.RULES
KINDS = "weight+bias+norm_scale+norm_bias"
TRAIN_IMAGES = 50_000  # official training set
VALIDATION_IMAGES = 5_000  # held out of it, the same for every run
TEST_IMAGES = 10_000


@dataclass(frozen=True)
class RunConfig:
    """One training run. Raises ValueError, in one line, for a field that is out of range or not of its type."""

    algorithm: str  # a row of optim.RULES
    alpha: float  # initial learning rate
    decay: float  # lambda' for sgd and adam, lambda for sgdw and adamw, per step; lambda_norm if normalized
    schedule: str = "cosine"  # text of schedules.parse, in epochs
    decay_unit: str = "raw"  # raw | normalized (Appendix B.1, recomputed at every restart)
    decayed: str = KINDS  # parameter kinds that decay, joined by +; all, as in the released code
    beta1: float = 0.9  # momentum of sgd and sgdw, first-moment rate of adam and adamw
    beta2: float = 0.999  # second-moment rate of adam and adamw
    eps: float = 1e-8  # of adam and adamw
    network: str = "cnn"  # cnn | shakeshake26
    width: int = 8  # channels of the first stage
    dataset: str = "cifar10"  # cifar10 | generated
    train_size: int = 45_000  # images; up to 45,000 leave the validation split aside, 50,000 uses it for training
    augment: str = "flip+crop"  # none | flip | flip+crop
    epochs: int = 100  # passes over the training images
    batch_size: int = 128  # images per update; the last, smaller batch of an epoch is kept
    evaluations: int = 1  # points on the validation and test curves, evenly spaced, the last at the end
    precision: str = "float32"  # float64 | float32 | bfloat16 | float16, of forward and backward; weights >= float32
    snapshots: str = ""  # epochs after which the class probabilities of the test images are kept, such as "5,15,35"
    seed: int = 0  # initialisation, order of images, augmentation, shake coefficients

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is float and (type(value) is float or (type(value) is int and abs(value) < 2**1023)):
                object.__setattr__(self, field.name, float(value) + 0.0)  # 1 and 1.0, -0.0 and 0.0: one run, not two
            elif type(value) is not field.type:
                raise ValueError(f"{field.name} must be {field.type.__name__}, got {value!r}")  # type: ignore[union-attr]
        one_of("algorithm", self.algorithm, ALGORITHMS)
        one_of("decay_unit", self.decay_unit, ("raw", "normalized"))
        one_of("network", self.network, ("cnn", "shakeshake26"))
        one_of("dataset", self.dataset, ("cifar10", "generated"))
        one_of("augment", self.augment, ("none", "flip", "flip+crop"))
        one_of("precision", self.precision, ("float64", "float32", "bfloat16", "float16"))
        kinds = self.decayed.split("+")
        for kind in kinds:
            one_of("decayed", kind, KINDS.split("+"))
        if kinds != [kind for kind in KINDS.split("+") if kind in kinds]:
            raise ValueError(f"decayed must name each kind once, in the order {KINDS}, got {self.decayed!r}")
        for name in ("alpha", "decay", "eps"):
            _in_range(name, getattr(self, name), 0, math.inf, "a finite number >= 0")
        for name in ("beta1", "beta2"):
            _in_range(name, getattr(self, name), 0, 1, "in [0, 1)")
        if self.algorithm.startswith("sgd") and (self.beta2, self.eps) != (0.999, 1e-8):
            raise ValueError(f"{self.algorithm} has no beta2 and no eps; leave them at their defaults")
        for name in ("width", "epochs", "batch_size", "evaluations"):
            _in_range(name, getattr(self, name), 1, 2**31, "a whole number >= 1")
        _in_range("seed", self.seed, 0, 2**31, "a whole number in [0, 2^31)")
        if self.network == "shakeshake26" and self.width % 2:
            raise ValueError(f"width of shakeshake26 must be even, got {self.width}")
        if self.evaluations > self.epochs:
            raise ValueError(f"evaluations must be at most epochs ({self.epochs}), got {self.evaluations}")
        whole = TRAIN_IMAGES - VALIDATION_IMAGES
        if not (1 <= self.train_size <= whole or self.train_size == TRAIN_IMAGES):
            raise ValueError(f"train_size must be 1..{whole} or {TRAIN_IMAGES}, got {self.train_size}")
        kept = self.snapshots.split(",") if self.snapshots else []
        epochs = self.snapshot_epochs()
        if [str(e) for e in epochs] != kept or epochs != sorted({e for e in epochs if 1 <= e <= self.epochs}):
            raise ValueError(f"snapshots must be rising epochs in 1..{self.epochs}, such as 5,15: {self.snapshots!r}")
        object.__setattr__(self, "schedule", schedules.canonical(self.schedule))  # two spellings are one run

    @property
    def steps_per_epoch(self) -> int:
        """Updates per epoch."""
        return -(-self.train_size // self.batch_size)

    @property
    def steps(self) -> int:
        """Updates of the whole run."""
        return self.epochs * self.steps_per_epoch

    @property
    def evaluated_images(self) -> int:
        """Images of which only the class is asked: validation and test at each point of the curves, and snapshots."""
        held_out = 0 if self.train_size == TRAIN_IMAGES else VALIDATION_IMAGES
        return self.evaluations * (held_out + TEST_IMAGES) + len(self.snapshot_epochs()) * TEST_IMAGES

    def snapshot_epochs(self) -> list[int]:
        """The epochs of `snapshots`."""
        return [int(epoch) for epoch in self.snapshots.split(",") if epoch.isdecimal() and len(epoch) < 11]

    def to_dict(self) -> dict[str, str | int | float]:
        """All fields by name."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_dict(cls, fields: Mapping[Any, Any]) -> "RunConfig":
        """The run with exactly these fields; ValueError names unknown and missing ones."""
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(repr(name).strip("'") for name in set(fields) - known):
            raise ValueError(f"unknown field(s): {', '.join(unknown)}")
        if missing := sorted(known - set(fields)):
            raise ValueError(f"missing field(s): {', '.join(missing)}")
        return cls(**fields)

    def key(self) -> str:
        """16 hexadecimal digits that stand for all fields and the semantics version."""
        fields = {name: value for name, value in self.to_dict().items() if (name, value) not in ADDED}
        text = json.dumps({"semantics": SEMANTICS, **fields}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def shape(self) -> tuple[object, ...]:
        """What runs must share to be trained in one pack: everything that sets the size or kind of the work."""
        per_run = {"alpha", "decay", "schedule", "decay_unit", "decayed", "seed"}
        return tuple(value for name, value in self.to_dict().items() if name not in per_run)


def one_of(name: str, value: str, known: Iterable[str]) -> None:
    """ValueError, in one line, for a value that is not known."""
    if value not in known:
        raise ValueError(f"unknown {name} {value!r}; known: {', '.join(known)}")


def _in_range(name: str, value: float, low: float, high: float, wanted: str) -> None:
    if not low <= value < high:
        raise ValueError(f"{name} must be {wanted}, got {value!r}")
