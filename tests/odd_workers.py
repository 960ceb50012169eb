"""In the place of workers.train in real worker processes: what cannot be brought about from outside, and what is quick.

Nothing is imported here before it is needed: a sweep hands work out without torch.
"""

import runpy
import signal
import time
from functools import partial
from types import SimpleNamespace
from typing import Any

from decoupled import workers


def few(*args):
    """Trains on few, small images: what is killed need not be large."""
    if workers._images is None:
        from plain_loop import make_images

        workers._images = make_images()
    return workers.train(*args)


def briefly(*args):
    """Measures the speed for a moment only."""
    from decoupled import engine

    measure = engine.seconds_per_image
    engine.seconds_per_image = partial(measure, enough_s=0.05)
    try:
        return workers.measure(*args)
    finally:
        engine.seconds_per_image = measure


def made_up(*_):
    """Measures nothing."""
    return workers.Measured(1e-4, "A Processor")


def command():
    """`python -m decoupled`, whose workers carry out these two."""
    from decoupled import data, sweep

    # a shell that runs the tests in its background passes on that Ctrl-C is ignored; a terminal does not
    signal.signal(signal.SIGINT, signal.default_int_handler)
    images: Any = SimpleNamespace(source="generated", fingerprint="made-by-hand")  # as few's, and enough for a sweep
    data.generated = lambda seed=0: images
    sweep.train, sweep.measure = few, briefly
    runpy.run_module("decoupled", run_name="__main__", alter_sys=True)


def sleep(pack, folder, *_):
    """Never ends."""
    (folder / "begun").touch()
    time.sleep(1e6)


def short_of_memory(pack, folder, *rest):
    """A device whose memory holds one run; writes down for which packs the engine was told to give memory back."""
    from decoupled import engine

    train, release = engine.train, engine.release

    raised = []

    def scarce(runs, *args):
        if len(runs) > 1:
            raised.append(len(runs))
            raise engine.torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return train(runs, *args)

    def noted():
        release()
        with open(folder / "released", "a") as file:
            file.writelines(f"{runs}\n" for runs in raised)  # the engine does it too, before it trains

    engine.train, engine.release = scarce, noted
    try:
        return few(pack, folder, *rest)
    finally:
        engine.train, engine.release = train, release


def telling(pack, folder, *rest):
    """Writes down the epoch from which a pack goes on."""
    from decoupled import engine

    load = engine.Book.load

    def noted(book, path, state):
        load(book, path, state)
        with open(folder / "resumed", "a") as file:
            file.write(f"{book.epoch}\n")

    engine.Book.load = noted  # type: ignore[method-assign]
    try:
        return few(pack, folder, *rest)
    finally:
        engine.Book.load = load  # type: ignore[method-assign]
