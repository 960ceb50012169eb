"""pack: the step as a fixed sequence of operations on the device; precisions; packs that are loaded anew.

A CUDA graph replays kernels on the same memory and runs no Python. `Tape` does the same on a CPU: it records every
operation of one step and executes them again, with the same tensors. A step that decided anything in Python, or read
anything back, would give other numbers, or is seen on the tape.
"""

import dataclasses
import functools
import math

import pytest
import torch
from plain_loop import different, make_images, make_pack, numbers, tiny
from torch.utils._python_dispatch import TorchDispatchMode

from decoupled import engine, pack
from decoupled.optim import RULES


class Tape(TorchDispatchMode):
    """Operations as they were executed; `replay` executes them again on the recorded tensors."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, out))
        return out

    def replay(self):
        with torch.no_grad():
            for func, args, kwargs, out in self.operations:
                if func.is_view:  # of memory that is still the same
                    continue
                again = func(*args, **kwargs)
                recorded, new = (v if isinstance(v, tuple | list) else (v,) for v in (out, again))
                for old, value in zip(recorded, new, strict=True):
                    if isinstance(old, torch.Tensor) and old is not value and old.numel():
                        old.copy_(value)


tapes: list[Tape] = []


def tape_capture(step, warm_up):
    """In the place of `pack.capture`: warm-up steps, one recorded step, and its replay."""
    warm_up()
    tape = Tape()
    with tape:
        step()
    tapes.append(tape)
    return tape.replay


@pytest.fixture
def recorded(monkeypatch):
    """Makes `engine.train` record its steps, as it does on CUDA."""
    tapes.clear()
    monkeypatch.setattr(pack, "capture", tape_capture)
    monkeypatch.setattr(engine, "Pack", functools.partial(pack.Pack, captured=True))
    engine.release()
    yield
    engine.release()


@pytest.fixture(scope="module")
def images():
    made = make_images()
    return made._replace(test_x=made.test_x[:50], test_y=made.test_y[:50])


RECORDED = {
    "a pack with masks and restarts": different(epochs=4, evaluations=2),
    "adam, shake-shake": [tiny("adam", 0.01, network="shakeshake26", epochs=2)],
    "bfloat16": [tiny("adamw", 0.01, precision="bfloat16"), tiny("adamw", 0.03, precision="bfloat16")],
    "float16": [tiny("adamw", 0.01, precision="float16", network="shakeshake26", epochs=2)],
    "no augmentation, batches of one size": [tiny("sgd_algorithm1", augment="none", batch_size=11)],
    "batch larger than the data": [tiny("sgdw", batch_size=100)],
}


@pytest.mark.parametrize("runs", RECORDED.values(), ids=RECORDED)
def test_a_recorded_step_gives_the_bits_of_a_called_one(runs, images, recorded, monkeypatch):
    replayed = numbers(engine.train(runs, images))
    assert len(tapes) == (1 if runs[0].steps_per_epoch == 1 or runs[0].batch_size == 11 else 2)  # sizes of batches
    monkeypatch.setattr(engine, "Pack", pack.Pack)
    engine.release()
    assert numbers(engine.train(runs, images)) == replayed


@pytest.mark.parametrize("runs", RECORDED.values(), ids=RECORDED)
def test_a_step_reads_nothing_back_and_sends_nothing_over(runs, recorded):
    make_pack(runs, captured=True)
    names = {str(func) for tape in tapes for func, *_ in tape.operations}
    reads = {name for name in names if "_local_scalar_dense" in name or "nonzero" in name or "is_nonzero" in name}
    assert names and not reads
    made = {name for name in names if "lift_fresh" in name or "scalar_tensor" in name}
    assert not made  # a tensor made of Python numbers would be copied from the CPU, in the midst of the step


def test_one_recording_serves_other_cells_seeds_and_schedules(images, recorded):
    first, second = different(precision="float32"), different(precision="float32")[::-1]
    engine.train(first, images)
    count = len(tapes)
    reused = numbers(engine.train(second, images))
    assert len(tapes) == count == 2  # batches of 8 and of 6
    engine.release()
    assert numbers(engine.train(second, images)) == reused and len(tapes) == 2 * count


# --- packs that are loaded anew -----------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_reused_pack_gives_the_bits_of_a_new_one(images, precision):
    runs = different(algorithm="adam", precision=precision)
    engine.release()
    fresh = numbers(engine.train(runs, images))
    engine.train(runs[::-1], images)
    used = engine._ready
    assert numbers(engine.train(runs, images)) == fresh
    assert used is not None and engine._ready is used


def test_a_pack_serves_other_optimizers_and_budgets_of_its_network(images):
    plain = {"augment": "flip", "precision": "float32"}
    others = [
        different("sgdw", **plain), different("adam", eps=1e-4, epochs=2, **plain), different("sgd", beta1=0.5, **plain)
    ]  # fmt: skip
    fresh = []
    for runs in others:
        engine.release()
        fresh.append(numbers(engine.train(runs, images)))
    used = engine._ready
    assert [numbers(engine.train(runs, images)) for runs in others] == fresh
    assert used is not None and engine._ready is used


def test_other_images_or_another_network_need_a_new_pack(images):
    engine.train([tiny(epochs=1)], images)
    first = engine._ready
    engine.train([tiny(epochs=1)], images._replace(train_x=images.train_x.clone()))
    second = engine._ready
    engine.train([tiny(epochs=1, seed=seed) for seed in range(3)], images)
    assert first is not None and second is not None and engine._ready is not None
    assert len({id(ready.pack) for ready in (first, second, engine._ready)}) == 3
    for runs in ([tiny(width=4)] * 2, [tiny(batch_size=4)] * 2, [tiny()]):
        with pytest.raises(ValueError, match=r"^a pack can only be loaded with as many runs of the network it was"):
            first.pack.load(runs)


# --- compiled -----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo's own doing
@pytest.mark.parametrize("network", ["cnn", "shakeshake26"])
def test_a_compiled_step_equals_an_eager_one(network, monkeypatch):
    """Traced by dynamo and differentiated ahead of time; only the generation of machine code is left out."""
    compiled = []

    def compile_to_eager(function, dynamic):
        compiled.append(function)
        torch._dynamo.reset()
        return torch._dynamo.optimize(backend="aot_eager", nopython=True, dynamic=dynamic)(function)

    monkeypatch.setattr(torch, "compile", compile_to_eager)
    runs = different(network=network, algorithm="adamw", augment="flip+crop")[:2]
    packs = [make_pack(runs, compiled=True), make_pack(runs)]
    assert len(compiled) == 2  # the loss and the update rule
    for one in packs:
        one.begin(0, one.draw(runs, 0))
        one.epoch()
    assert packs[0].compiled and not packs[1].compiled
    torch.testing.assert_close(packs[0].theta, packs[1].theta, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(packs[0].losses, packs[1].losses, rtol=1e-9, atol=1e-12)


def test_without_a_working_compiler_the_eager_step_is_taken(monkeypatch, capsys):
    def broken(function, dynamic):
        def fail(*args, **kwargs):
            raise RuntimeError("no compiler found\nand a long explanation")

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    runs = different(precision="float32")
    one, other = make_pack(runs, compiled=True), make_pack(runs)
    assert capsys.readouterr().err == "the training step runs uncompiled: no compiler found\n"
    for p in (one, other):
        p.begin(0, p.draw(runs, 0))
        p.epoch()
    assert not one.compiled and torch.equal(one.theta, other.theta)


# --- float16 ------------------------------------------------------------------------------------------------------


def test_float16_keeps_float32_weights_and_stays_near_float32(images):
    run = tiny("adam", 0.01, 1e-3, network="shakeshake26", precision="float16", epochs=2)
    [low], [high] = (engine.train([dataclasses.replace(run, precision=p)], images) for p in ("float16", "float32"))
    assert low["train_loss"] == pytest.approx(high["train_loss"], rel=0.05)
    assert low["train_loss"] != high["train_loss"]
    assert make_pack([run]).theta.dtype == torch.float32


def scaled_pack(runs, gradients):
    """A float16 pack whose gradient at step i is gradients[i] (a number per run, of the unscaled loss)."""
    one = make_pack(runs)
    one.begin(0, one.draw(runs, 0))
    thetas = [one.theta.clone()]
    for value in gradients:
        one.grad.copy_(one._spread(one.scaling["scale"] * torch.tensor(value)))
        with torch.no_grad():
            one._apply_scaled()
            one.s += 1
        thetas.append(one.theta.clone())
    return one, thetas


@pytest.mark.parametrize("algorithm", ["adamw", "sgdw"])
def test_a_run_whose_gradient_overflows_skips_the_update_and_its_neighbour_does_not(algorithm):
    runs = [tiny(algorithm, 0.01, 0.1, precision="float16", epochs=9, schedule="fixed", seed=s) for s in (0, 1)]
    one, thetas = scaled_pack(runs, [[1.0, 1.0], [math.inf, 1.0], [2.0, math.nan], [0.5, 0.5]])
    mine, other = (one.run_of == r for r in (0, 1))
    assert torch.equal(thetas[2][mine], thetas[1][mine]) and not torch.equal(thetas[2][other], thetas[1][other])
    assert torch.equal(thetas[3][other], thetas[2][other]) and not torch.equal(thetas[3][mine], thetas[2][mine])
    assert one.scaling["scale"].tolist() == [pack.FIRST_SCALE / 2] * 2
    assert one.scaling["skipped"].tolist() == [1, 1] and one.scaling["good"].tolist() == [2, 1]
    # the rule itself, on the gradients that were not skipped, in float64 and with its own count of updates
    for r, gradients in enumerate([[1.0, 2.0, 0.5], [1.0, 1.0, 0.5]]):
        theta, state = thetas[0][one.run_of == r].double(), dict[str, torch.Tensor]()
        for t, g in enumerate(gradients, start=1):
            rate = {"alpha": 0.01, "eta": 1.0, "lam": 0.1}
            theta, state = RULES[algorithm].update(theta, torch.full_like(theta, g), state, t, **rate)
        torch.testing.assert_close(thetas[-1][one.run_of == r].double(), theta, rtol=1e-5, atol=1e-6)


def test_the_scale_of_the_loss_grows_after_enough_finite_steps(monkeypatch):
    monkeypatch.setattr(pack, "GROWTH_STEPS", 3)
    runs = [tiny("sgdw", 0.0, 0.0, precision="float16", epochs=9, schedule="fixed")]
    one, _ = scaled_pack(runs, [[1.0], [1.0], [math.inf], [1.0], [1.0], [1.0], [1.0]])
    assert one.scaling["scale"].tolist() == [pack.FIRST_SCALE]  # halved once, doubled once
    assert one.scaling["good"].tolist() == [1]


# --- on a GPU -----------------------------------------------------------------------------------------------------

TOLERANCE = {"float64": 1e-7, "float32": 1e-3, "bfloat16": 0.05, "float16": 0.05}  # relative, of a short run's loss


@pytest.mark.gpu
@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("network", ["cnn", "shakeshake26"])
def test_a_gpu_gives_the_losses_of_the_cpu(network, precision, images):
    runs = different(network=network, precision=precision, epochs=2)
    for gpu, cpu in zip(engine.train(runs, images, "cuda"), engine.train(runs, images), strict=True):
        assert gpu["loss_curve"] == pytest.approx(cpu["loss_curve"], rel=TOLERANCE[precision])


@pytest.mark.gpu
@pytest.mark.parametrize("precision", TOLERANCE)
def test_compiled_and_captured_steps_equal_eager_ones_on_a_gpu(precision, images, monkeypatch):
    runs = different(network="shakeshake26", width=4, precision=precision, epochs=2)
    curves = []
    for compiled, captured in ((False, False), (False, True), (True, False), (True, True)):
        engine.release()
        monkeypatch.setattr(engine, "Pack", functools.partial(pack.Pack, compiled=compiled, captured=captured))
        curves.append([result["loss_curve"] for result in engine.train(runs, images, "cuda")])
    assert curves[1] == curves[0] and curves[3] == curves[2]  # a replay runs the very kernels
    for ours, eager in zip(curves[2], curves[0], strict=True):
        assert ours == pytest.approx(eager, rel=TOLERANCE[precision])


@pytest.mark.gpu
@pytest.mark.parametrize("precision", TOLERANCE)
def test_a_pack_equals_its_runs_alone_on_a_gpu(precision, images):
    runs = different(network="shakeshake26", width=4, precision=precision, epochs=2)
    together = engine.train(runs, images, "cuda")
    for run, result in zip(runs, together, strict=True):
        [alone] = engine.train([run], images, "cuda")
        assert result["loss_curve"] == pytest.approx(alone["loss_curve"], rel=TOLERANCE[precision])


@pytest.mark.gpu
def test_the_same_bits_twice_and_after_a_resume_on_a_gpu(images, tmp_path):
    runs = [tiny("adamw", 0.01, network="shakeshake26", width=16, precision="bfloat16", epochs=3)]
    whole = numbers(engine.train(runs, images, "cuda"))
    for _ in range(2):
        engine.release()
        with pytest.raises(engine.OutOfTime):
            engine.train(runs, images, "cuda", tmp_path / "pack.pt", time_limit=0)
    engine.release()
    assert numbers(engine.train(runs, images, "cuda", tmp_path / "pack.pt")) == whole


@pytest.mark.gpu
@pytest.mark.parametrize("algorithm", RULES)
def test_update_rules_on_a_gpu_equal_those_on_the_cpu_in_float64(algorithm):
    generator = torch.Generator().manual_seed(0)
    theta, *gradients = torch.randn(11, 300, generator=generator, dtype=torch.float64)
    ends = []
    for device in ("cpu", "cuda"):
        here, state = theta.to(device), dict[str, torch.Tensor]()
        for t, g in enumerate(gradients, start=1):
            here, state = RULES[algorithm].update(here, g.to(device), state, t, alpha=0.01, eta=0.9, lam=0.1)
        ends.append(here.cpu())
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-12, atol=1e-14)
