"""engine: one path for one run and for a pack, held against a plain training loop with torch's own optimizers.

Images are 8x8 and made up, so that a run takes milliseconds; nothing in the engine knows their size.
"""

import dataclasses
import json
import math

import numpy as np
import pytest
import reference
import torch
from plain_loop import N, assert_close, different, make_images, make_pack, normalized, plain_error, plain_training, tiny
from torch import nn

import decoupled
from decoupled import data, engine, evidence
from decoupled.pack import Pack, random_stream
from decoupled.profiles import PROFILES
from decoupled.runs import KINDS


@pytest.fixture(scope="module")
def images():
    return make_images()


@pytest.fixture
def packs(monkeypatch):
    """Every pack that is trained in a test, in order: for a look at its final weights."""
    seen = []
    engine.release()  # a pack that another test left would not be seen

    class Watched(Pack):
        def __init__(self, *args):
            super().__init__(*args)
            seen.append(self)

    monkeypatch.setattr(engine, "Pack", Watched)
    return seen


ORACLE_RUNS = {
    "sgdw": (tiny("sgdw", 0.1, 0.01), True),
    "adamw": (tiny("adamw", 0.01, 0.01, beta1=0.8, beta2=0.95, eps=1e-4), True),
    "adamw as torch's": (tiny("adamw", 0.01, 0.01, schedule="fixed", augment="none"), False),
    "adam": (tiny("adam", 0.01, 0.05, augment="flip"), False),
    "sgd": (tiny("sgd", 0.1, 0.02, beta1=0.7), False),
    "only weights decay": (tiny("sgdw", 0.1, 0.05, decayed="weight"), True),
    "only biases and norms decay": (tiny("adam", 0.01, 0.5, decayed="bias+norm_scale+norm_bias"), False),
    "shake-shake": (tiny("sgdw", 0.05, 0.01, network="shakeshake26", epochs=2), True),
    "another seed": (tiny("sgdw", 0.1, 0.01, seed=11, train_size=N + 5), True),
}


@pytest.mark.parametrize(("run", "ours"), ORACLE_RUNS.values(), ids=ORACLE_RUNS)
def test_a_run_equals_a_plain_loop(run, ours, images, packs):
    few = images._replace(test_x=images.test_x[:60], test_y=images.test_y[:60])
    [result] = engine.train([run], few)
    model, losses = plain_training(run, images, ours)
    assert result["loss_curve"] == pytest.approx([np.mean(epoch) for epoch in losses], rel=1e-9)
    assert result["train_loss"] == result["loss_curve"][-1]
    theirs = dict(model.named_parameters())
    for name, p in packs[0].model.named_parameters():
        mine = p.detach()[: len(theirs[name])]  # the rest is its copy's
        torch.testing.assert_close(mine, theirs[name].detach(), rtol=1e-6, atol=1e-9)
    assert result["test_error"] == pytest.approx(plain_error(model, few.test_x, few.test_y), abs=1e-9)


def test_errors_are_those_of_a_plain_loop_over_single_images(images, monkeypatch):
    runs = [
        tiny("sgdw", alpha, 0.01, seed=seed, train_size=300, batch_size=50) for alpha, seed in ((0.1, 0), (0.03, 4))
    ]
    monkeypatch.setitem(engine.EVAL_BATCH, "cpu", 47)  # divides neither 150 nor 200
    monkeypatch.setattr(data, "VALIDATION_IMAGES", 200)
    results = engine.train(runs, images)
    used, held_out = data.split(300)
    assert len(held_out) == 200 and not set(held_out.tolist()) & set(used.tolist())
    for run, result in zip(runs, results, strict=True):
        model, _ = plain_training(run, images, ours=True)
        assert result["test_error"] == pytest.approx(plain_error(model, images.test_x, images.test_y), abs=1e-9)
        x, y = images.train_x[held_out], images.train_y[held_out]
        assert result["val_error"] == pytest.approx(plain_error(model, x, y), abs=1e-9)
    assert results[0]["test_error"] != results[1]["test_error"]


def test_the_engine_learns(images):
    runs = [tiny("sgdw", 0.1, 1e-3, train_size=500, batch_size=25, epochs=6, width=4, precision="float32")]
    runs += [dataclasses.replace(runs[0], seed=1)]
    for result in engine.train(runs, images):
        assert result["test_error"] < 30 and result["val_error"] < 30  # guessing is wrong in 90 %
        assert result["train_loss"] < result["loss_curve"][0] < math.log(10) + 0.5
        assert result["diverged_step"] == -1


# --- packs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [{"algorithm": "sgdw"}, {"algorithm": "adam", "eps": 1e-4}, {"network": "shakeshake26", "epochs": 2}],
    ids=["cnn sgdw", "cnn adam", "shakeshake26"],
)
def test_a_pack_of_runs_equals_the_runs_alone(changes, images, packs, monkeypatch):
    monkeypatch.setattr(data, "VALIDATION_IMAGES", 100)
    few = images._replace(test_x=images.test_x[:60], test_y=images.test_y[:60])
    runs = different(**changes)
    together = engine.train(runs, few)
    assert len({json.dumps(r["loss_curve"]) for r in together}) == len(runs)
    for r, run in enumerate(runs):
        [alone] = engine.train([run], few)
        assert_close(together[r], alone)
        mine = packs[0].theta[packs[0].run_of == r]
        torch.testing.assert_close(mine, packs[-1].theta[packs[-1].run_of == 0], rtol=1e-7, atol=1e-9)


def test_a_pack_needs_runs_of_one_shape(images):
    for runs in ([], [tiny(), tiny(width=4)], [tiny("sgd"), tiny("sgdw")]):
        with pytest.raises(ValueError, match=r"^a pack needs at least one run, all of the same shape"):
            engine.train(runs, images)


@pytest.mark.parametrize("network", ["cnn", "shakeshake26"])
def test_theta_holds_each_parameter_once_with_its_run_and_kind(network):
    runs = [tiny(network=network, decayed=kinds) for kinds in ("weight", "bias+norm_bias", KINDS)]
    pack = make_pack(runs)
    kinds = decoupled.optim.parameter_kinds(pack.model)
    assert len(pack.theta) == sum(p.numel() for p in pack.model.parameters())

    def fill(value):
        for name, p in pack.model.named_parameters():
            for r, part in enumerate(p.data.chunk(len(runs))):
                part.fill_(value(name, r))
        return pack.theta

    assert torch.equal(fill(lambda name, r: r), pack.run_of.double())
    assert torch.equal(fill(lambda name, r: kinds[name] in runs[r].decayed.split("+")), pack.mask)
    for _, p in pack.model.named_parameters():
        p.grad.fill_(1.0)
    assert torch.equal(pack.grad, torch.ones_like(pack.theta))
    assert (make_pack([tiny()]).mask == 1).all()


def test_random_streams_depend_on_seed_purpose_and_epoch_and_on_nothing_else():
    seen = {
        random_stream(tiny(seed=seed), purpose, epoch).initial_seed()
        for seed in (0, 1, 10)
        for purpose in ("init", "order", "augment", "shake")
        for epoch in (0, 1, 10)
    }
    assert len(seen) == 3 * 4 * 3
    other = tiny("adam", 0.5, 0.0, width=4, epochs=1, schedule="fixed")
    assert random_stream(tiny(), "order", 2).initial_seed() == random_stream(other, "order", 2).initial_seed()


# --- schedule and decay tables ------------------------------------------------------------------------------------


def test_eta_and_normalized_decay_are_those_of_every_cycle():
    run = tiny(
        "adamw", decay=0.3, decay_unit="normalized", schedule="restarts(1, 2)", epochs=7, train_size=100, batch_size=10
    )
    raw = dataclasses.replace(run, decay_unit="raw", schedule="fixed")
    whole = dataclasses.replace(run, schedule="cosine")
    pack = make_pack([run, raw, whole])
    etas, lengths = reference.cosine_with_restarts(70, 10, 2)
    assert pack.eta[:, 0].tolist() == pytest.approx(etas, abs=1e-12)
    lams = [reference.normalized_decay(0.3, 10, 100, length / 10) for length in lengths]
    assert sorted(set(lams)) == pytest.approx([0.3 * math.sqrt(0.1 / T) for T in (4, 2, 1)])
    assert pack.lam[:, 0].tolist() == pytest.approx(lams, rel=1e-12)
    assert pack.eta[:, 1].tolist() == [1.0] * 70 and pack.lam[:, 1].tolist() == [0.3] * 70
    assert pack.eta[:, 2].tolist() == pytest.approx(reference.cosine_with_restarts(70, 70, 1)[0], abs=1e-12)
    assert pack.lam[:, 2].tolist() == pytest.approx([0.3 * math.sqrt(0.1 / 7)] * 70)


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_decay_of_the_first_step_is_measured(images, precision):
    # the difference of two float32 vectors knows a decay of 0.03 to about 1e-5 of itself
    close = 1e-9 if precision == "float64" else 1e-4
    shared = {"epochs": 1, "precision": precision}
    runs = [tiny(decay=0.03, **shared), tiny(decay=0.0, **shared), tiny(decay=0.03, decayed="weight", **shared)]
    runs += [tiny(decay=0.03, decay_unit="normalized", schedule="restarts(0.5, 1)", **shared)]
    weights = make_pack(runs[2:3])
    part = ((weights.theta * weights.mask).norm() / weights.theta.norm()).item()
    assert 0.1 < part < 0.99
    first_cycle = reference.normalized_decay(0.03, 8, N, 2 / 3)  # half an epoch of 3 updates is rounded to 2
    for algorithm in ("sgdw", "adamw", "sgdw_algorithm1"):
        mine = [dataclasses.replace(run, algorithm=algorithm) for run in runs]
        measured = [result["decay_first_step"] for result in engine.train(mine, images)]
        assert measured == pytest.approx([0.03, 0.0, 0.03 * part, first_cycle], rel=close)
        assert measured[1] == 0.0
    l2 = [dataclasses.replace(run, algorithm="sgd") for run in runs[:2]]  # through the gradient: alpha lambda'
    measured = [result["decay_first_step"] for result in engine.train(l2, images)]
    assert measured == pytest.approx([0.1 * 0.03, 0.0], rel=10 * close) and measured[1] == 0.0
    adam = [dataclasses.replace(run, algorithm="adam") for run in runs[:2]]
    measured = [result["decay_first_step"] for result in engine.train(adam, images)]
    assert measured[0] > 0 == measured[1]


# --- evaluation ---------------------------------------------------------------------------------------------------


def test_evaluations_are_evenly_spaced_end_at_the_end_and_disturb_nothing(images):
    few = images._replace(test_x=images.test_x[:50], test_y=images.test_y[:50])
    for epochs in (1, 5):
        for n in range(1, epochs + 1):
            [result] = engine.train([tiny(epochs=epochs, evaluations=n, precision="float32")], few)
            points = result["eval_epochs"]
            assert len(points) == len(result["val_curve"]) == len(result["test_curve"]) == n
            assert points[-1] == epochs and points[0] >= 1
            ideal = [epochs * (i + 1) / n for i in range(n)]
            assert max(abs(p - i) for p, i in zip(points, ideal, strict=True)) <= 0.5
            assert (result["val_error"], result["test_error"]) == (result["val_curve"][-1], result["test_curve"][-1])
            if n == 1:
                once = result
            assert result["loss_curve"] == once["loss_curve"] and result["test_error"] == once["test_error"]


def test_all_images_for_training_leave_no_validation_error(images):
    [result] = engine.train(
        [tiny(train_size=50_000, batch_size=10_000, epochs=1, width=1, precision="float32")], images
    )
    assert math.isnan(result["val_error"]) and [math.isnan(v) for v in result["val_curve"]] == [True]
    assert 0 <= result["test_error"] <= 100


def test_other_images_than_asked_for_are_refused(images):
    with pytest.raises(ValueError, match=r"^these runs ask for cifar10 images, got generated$"):
        engine.train([tiny(dataset="cifar10")], images)


def test_bfloat16_keeps_float32_weights_and_stays_near_float32(images, packs):
    half = tiny("adam", 0.01, 1e-3, network="shakeshake26", precision="bfloat16", epochs=1)
    [low], [high] = (engine.train([dataclasses.replace(half, precision=p)], images) for p in ("bfloat16", "float32"))
    for pack in packs:
        assert {pack.theta.dtype, pack.losses.dtype, *(p.dtype for p in pack.model.parameters())} == {torch.float32}
    assert low["train_loss"] == pytest.approx(high["train_loss"], rel=0.05)
    assert low["train_loss"] != high["train_loss"]


# --- devices ------------------------------------------------------------------------------------------------------


def test_devices_have_names():
    apple = "mps" if torch.backends.mps.is_available() else "cpu"
    assert engine.default_device() == ("cuda" if torch.cuda.is_available() else apple)
    assert engine.device_name("cpu").strip()


@pytest.mark.parametrize(("device", "bfloat16", "profile"), [
    ("cpu", False, "cpu"), ("mps", False, "cpu"), ("cuda", True, "gpu"), ("cuda", False, "t4"),
])  # fmt: skip
def test_the_profile_follows_the_device(device, bfloat16, profile, monkeypatch):
    monkeypatch.setattr(engine, "default_device", lambda: device)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bfloat16)
    assert engine.default_profile() == profile and profile in PROFILES


@pytest.mark.parametrize("network", ["cnn", "shakeshake26"])
def test_the_speed_of_a_step_can_be_measured(network):
    run = tiny(network=network, precision="float32", batch_size=4)
    assert 0 < engine.seconds_per_image(run, "cpu", enough_s=0) < 60


def conv_flops(size_out, c_in, c_out, kernel):
    return 2 * size_out**2 * kernel**2 * c_in * c_out


def test_flops_of_a_step_are_those_of_its_convolutions():
    """Forward, and twice that backward (input and weights); the images themselves need no gradient."""
    w = 8
    stem = conv_flops(16, 3, w, 3)
    blocks = 2 * conv_flops(16, w, w, 3)
    for size, c in ((8, w), (4, 2 * w)):  # the two blocks that halve the image: 3x3, 3x3 and the 1x1 skip
        blocks += conv_flops(size, c, 2 * c, 3) + conv_flops(size, 2 * c, 2 * c, 3) + conv_flops(size, c, 2 * c, 1)
    head = 2 * 4 * w * 10
    assert engine.step_flops(tiny(width=w)) == 2 * stem + 3 * (blocks + head)
    # Shake-Shake 26 2x64d: 10.112 GFLOP by an independent count
    assert engine.step_flops(tiny(network="shakeshake26", width=64)) == pytest.approx(10.112e9, rel=1e-3)


def test_modules_stand_in_training_mode_between_evaluations(images, packs):
    engine.train([tiny(epochs=2, evaluations=2)], images)
    assert all(module.training for module in packs[0].model.modules() if isinstance(module, nn.BatchNorm2d))


# --- snapshots ----------------------------------------------------------------------------------------------------


def test_class_probabilities_are_kept_after_the_epochs_asked_for(images, monkeypatch):
    few = images._replace(test_x=images.test_x[:60], test_y=images.test_y[:60])
    runs = [tiny(seed=s, epochs=4, evaluations=4, snapshots="1,3,4") for s in (0, 1)]
    results = engine.train(runs, few)
    plain = engine.train([dataclasses.replace(run, snapshots="") for run in runs], few)
    for run, result, without in zip(runs, results, plain, strict=True):
        kept = [evidence.unpacked(text) for text in result["probabilities"]]
        assert len(kept) == 3 and without["probabilities"] == []
        for epoch, p in zip(run.snapshot_epochs(), kept, strict=True):
            assert p.shape == (60, 10) and p.sum(1) == pytest.approx(np.ones(60), abs=1e-4)
            wrong = 100 * np.mean(p.argmax(1) != few.test_y.numpy())
            assert wrong == pytest.approx(result["test_curve"][epoch - 1], abs=1e-9)
        assert {n: v for n, v in result.items() if n not in ("probabilities", "seconds")} == {
            n: v for n, v in without.items() if n not in ("probabilities", "seconds")
        }
    model, _ = plain_training(runs[0], images, ours=True)
    model.eval()
    with torch.no_grad():
        theirs = model(normalized(few.test_x))[0].softmax(1)
    mine = evidence.unpacked(results[0]["probabilities"][-1])
    assert np.abs(mine - theirs.numpy()).max() <= 0.5 / 65535 + 1e-9  # as fine as it is stored


def test_a_diverged_run_keeps_no_probability_that_is_no_number(images):
    [result] = engine.train([tiny(alpha=1e250, epochs=1, snapshots="1")], images)
    assert result["diverged_step"] == 1
    assert (evidence.unpacked(result["probabilities"][0]) == 0).all()
