"""The sizes at which every experiment is run: networks, images, budgets, grids and seeds, as data.

Symbols: T_0 and T_mult of warm restarts in epochs; lambda' (L2), lambda (decoupled) and lambda_norm (normalized decay,
Appendix B.1) as in `runs.RunConfig`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Grid:
    """Learning rates and positive decays of one algorithm; decay 0 is always added."""

    alphas: tuple[float, ...]
    decays: tuple[float, ...]  # lambda' for sgd and adam, lambda for sgdw and adamw


@dataclass(frozen=True)
class Profile:
    """The size at which every experiment is run: network, images, budget, grids and seeds."""

    about: str
    setting: dict[str, str | int]  # fields of RunConfig shared by all runs
    grids: dict[str, Grid]  # Fig. 2, by algorithm
    schedule_grids: dict[str, Grid]  # Fig. 1, by algorithm; fixed and step, and cosine where Fig. 2 has it not
    fresh_seeds: int  # seeds beside the grid's seed 0 for the chosen cells
    best: dict[str, tuple[float, float]]  # (alpha, decay) where an experiment searches for neither
    study_seeds: int  # seeds 1, 2, ... of such experiments
    trick_seeds: int  # and of what no claim rests on: advice in `tricks`, cycles of equal length in `sgdr`
    long_width: int  # of the network in `generalization`, `restarts` and `fixed_lr`
    first_cycle: int  # T_0 of the restarts, T_mult = 2
    cycles: int  # of the restarts
    long_epochs: int  # the long budget, a multiple of T_0
    long_decays: dict[str, tuple[float, ...]]  # Fig. 3: lambda' of adam, lambda_norm of adamw
    budgets: tuple[int, ...]  # Suppl. 3: epochs
    budget_decays: tuple[float, ...]  # Suppl. 3: lambda of adamw
    budget_alphas: tuple[float, ...]  # Suppl. 3: learning rates of adamw
    budget_seeds: int  # Suppl. 3: seeds 0, 1, ...
    train_sizes: tuple[int, ...]  # other sizes of the training set, at the profile's budget
    batch_sizes: tuple[int, ...]  # other batch sizes, at the profile's budget
    fixed: Grid  # Suppl. 2: adam at a fixed rate
    fixed_epochs: int  # Suppl. 2: its budget; adamw gets a tenth
    widths: tuple[int, ...]  # `tricks`: other widths of the network

    @property
    def cycle_ends(self) -> list[int]:
        """Epochs after which the cycles of the restarts end: T_0 (2^k - 1)."""
        return [self.first_cycle * (2**k - 1) for k in range(1, self.cycles + 1)]


def doubling(top: float, halvings: Iterable[int]) -> tuple[float, ...]:
    """top / 2^k for every k, ascending."""
    return tuple(sorted(top / 2**k for k in halvings))


PAPER_DECAYS = doubling(2e-3, range(7))  # 1e-3 x {1/32, ..., 2}
WIDE_PAPER_DECAYS = doubling(16e-3, range(10))  # 1e-3 x {1/32, ..., 16}

PROFILES: dict[str, Profile] = {
    "smoke": Profile(
        "seconds: proves that everything works, says nothing about weight decay",
        {"train_size": 512, "epochs": 2, "batch_size": 64, "augment": "flip", "network": "cnn", "width": 8},
        {
            "sgd": Grid((0.05, 0.1), (4e-3, 1.6e-2)),
            "sgdw": Grid((0.05, 0.1), (2e-3, 8e-3)),
            "adam": Grid((4e-3, 8e-3), (4e-3, 1.6e-2)),
            "adamw": Grid((4e-3, 8e-3), (2e-3, 8e-3)),
        },
        {"adam": Grid((4e-3, 8e-3), (4e-3, 1.6e-2)), "adamw": Grid((4e-3, 8e-3), (2e-3, 8e-3))},
        fresh_seeds=1,
        best={"sgd": (0.1, 4e-3), "sgdw": (0.1, 2e-3), "adam": (8e-3, 4e-3), "adamw": (8e-3, 2e-3)},
        study_seeds=1,
        trick_seeds=1,
        long_width=8,
        first_cycle=1,
        cycles=2,
        long_epochs=3,
        long_decays={"adam": (4e-3,), "adamw": (0.02,)},
        budgets=(1, 2),
        budget_decays=(2e-3, 8e-3),
        budget_alphas=(8e-3,),
        budget_seeds=1,
        train_sizes=(256,),
        batch_sizes=(128,),
        fixed=Grid((8e-3,), (4e-3,)),
        fixed_epochs=10,
        widths=(16,),
    ),
    "cpu": Profile(
        "minutes on two cores: 2,816 real training images, a network of 20 thousand parameters",
        {"train_size": 2816, "epochs": 20, "batch_size": 64, "augment": "flip", "network": "cnn", "width": 8},
        {
            # one decay more where the best one is expected to move with the learning rate
            "sgd": Grid(doubling(0.4, range(4)), doubling(3.2e-2, (0, 2, 4, 6, 8))),
            "sgdw": Grid(doubling(0.4, range(4)), doubling(1.6e-2, (0, 2, 4, 6))),
            "adam": Grid(doubling(3.2e-2, range(4)), doubling(3.2e-2, (0, 2, 4, 6, 8))),
            "adamw": Grid(doubling(3.2e-2, range(4)), doubling(1.6e-2, (0, 2, 4, 6))),
        },
        {
            "adam": Grid(doubling(3.2e-2, range(4)), doubling(8e-3, (0, 2, 4))),
            "adamw": Grid(doubling(3.2e-2, range(4)), doubling(1.6e-2, (0, 2, 4))),
        },
        fresh_seeds=5,
        # the cells chosen on validation errors of the grids above, seed 0
        best={"sgd": (0.1, 8e-3), "sgdw": (0.2, 4e-3), "adam": (1.6e-2, 5e-4), "adamw": (1.6e-2, 4e-3)},
        study_seeds=5,
        trick_seeds=3,
        long_width=8,
        first_cycle=5,
        cycles=3,
        long_epochs=35,
        long_decays={"adam": doubling(4e-3, (0, 2, 4, 6)), "adamw": doubling(0.256, (0, 1, 2, 4))},
        budgets=(5, 10, 20, 40),
        budget_decays=doubling(1.6e-2, range(6)),
        budget_alphas=(1.6e-2,),
        budget_seeds=2,
        train_sizes=(704, 1408),  # a quarter and half of the updates, like the first of the budgets
        batch_sizes=(128, 256),  # likewise
        fixed=Grid(doubling(8e-3, (0, 2)), doubling(2e-3, (0, 2))),
        fixed_epochs=40,
        widths=(16,),
    ),
    "gpu": Profile(
        "one data-centre GPU, its time not yet measured: Shake-Shake 26 2x16d, all training images, 20 epochs",
        {"train_size": 45_000, "epochs": 20, "network": "shakeshake26", "width": 16, "precision": "bfloat16"},
        {
            "sgd": Grid(doubling(0.5, range(7)), doubling(8e-3, range(7))),
            "sgdw": Grid(doubling(0.5, range(7)), doubling(4e-3, range(7))),
            "adam": Grid(doubling(1e-2, range(7)), doubling(4e-3, range(7))),
            "adamw": Grid(doubling(1e-2, range(7)), doubling(4e-3, range(7))),
        },
        {
            "adam": Grid(doubling(1e-2, range(7)), doubling(4e-3, range(7))),
            "adamw": Grid(doubling(1e-2, range(7)), doubling(4e-3, range(7))),
        },
        fresh_seeds=5,
        best={"sgd": (0.125, 1e-3), "sgdw": (0.125, 1e-3), "adam": (1.25e-3, 2.5e-4), "adamw": (2.5e-3, 1e-3)},
        study_seeds=5,
        trick_seeds=5,
        long_width=16,
        first_cycle=5,
        cycles=4,
        long_epochs=75,
        long_decays={"adam": doubling(1e-3, range(7)), "adamw": doubling(0.2, range(6))},
        budgets=(5, 10, 20, 40),
        budget_decays=doubling(4e-3, range(7)),
        budget_alphas=doubling(5e-3, range(3)),
        budget_seeds=2,
        train_sizes=(5_625, 11_250, 22_500),
        batch_sizes=(64, 256),
        fixed=Grid(doubling(2.5e-3, range(3)), doubling(2.5e-4, range(3))),
        fixed_epochs=100,
        widths=(8, 32),
    ),
    "paper": Profile(
        "the paper's own protocol: Shake-Shake 26 2x64d, 50,000 images, 100 epochs, chosen on the test set",
        {"train_size": 50_000, "epochs": 100, "network": "shakeshake26", "width": 64},
        {
            "sgd": Grid(doubling(1.0, range(11)), WIDE_PAPER_DECAYS),
            "sgdw": Grid(doubling(1.0, range(11)), WIDE_PAPER_DECAYS),
            "adam": Grid(doubling(0.1, range(11)), WIDE_PAPER_DECAYS),
            "adamw": Grid(doubling(0.1, range(11)), WIDE_PAPER_DECAYS),
        },
        {
            "adam": Grid(doubling(0.1, range(11)), PAPER_DECAYS),
            "adamw": Grid(doubling(0.1, range(11)), PAPER_DECAYS),
        },
        fresh_seeds=5,
        best={"sgd": (1 / 16, 1e-3), "sgdw": (1 / 16, 5e-4), "adam": (1e-3, 1.25e-4), "adamw": (1e-3, 2.5e-4)},
        study_seeds=5,
        trick_seeds=5,
        long_width=96,
        first_cycle=100,
        cycles=4,
        long_epochs=1800,
        long_decays={
            "adam": (2e-7, 5e-7, 1e-6, 2e-6, 4e-6, 8e-6, 1.6e-5, 3.1e-5, 6.3e-5, 1.25e-4, 2.5e-4, 5e-4),
            "adamw": doubling(0.4, range(7)),
        },
        budgets=(25, 100, 400),
        budget_decays=doubling(1e-3, range(5)),
        budget_alphas=doubling(5e-3, range(6)),
        budget_seeds=1,
        train_sizes=(6_250, 12_500, 25_000),
        batch_sizes=(64, 256),
        fixed=Grid((1e-5, 1e-4, 1e-3, 1e-2), (1e-7, 1e-6, 1e-5, 1e-4)),
        fixed_epochs=1800,
        widths=(32, 96),
    ),
}
# in the place of `gpu` where the GPU has no bfloat16: the grids and learning rates of `cpu`, on all training images
PROFILES["t4"] = replace(
    PROFILES["cpu"],
    about="a small GPU without bfloat16, such as Colab's T4: all training images, a CNN of width 16, float16",
    setting=PROFILES["cpu"].setting | {"train_size": 45_000, "epochs": 15, "width": 16, "precision": "float16"},
    long_width=16,
    first_cycle=3,
    long_epochs=21,
    budgets=(4, 8, 15, 30),
    train_sizes=(11_250, 22_500),
    fixed_epochs=40,
    widths=(8, 32),
)
