"""Weight decay from first principles, and "Decoupled Weight Decay Regularization" reproduced on CIFAR-10.

For people who only came for the optimizers: `decoupled.SGDW` and `decoupled.AdamW`, in the paper's own form.
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["SGDW", "AdamW", "decay_groups"]


def __getattr__(name: str) -> Any:
    # on demand: the book's pages import the package for its results, on machines without torch
    if name in __all__:
        from decoupled import optim

        return getattr(optim, name)
    raise AttributeError(f"module 'decoupled' has no attribute {name!r}")
