"""Networks: published sizes, shapes, isolation of runs, shake-shake and its shortcut, initialisation."""

import copy
import math

import numpy as np
import pytest
import reference
import torch
from torch import nn
from torch.nn import functional as F

from decoupled import models

NETWORKS = ["cnn", "shakeshake26"]
R, B, SIDE, WIDTH = 3, 4, 8, 4


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def uniform(*shape):
    return torch.rand(*shape, dtype=torch.float64)


# --- sizes ----------------------------------------------------------------------------------------------------------


def convolution(kernel, c_in, c_out):
    return kernel * kernel * c_in * c_out


def batch_norm(channels):
    return 2 * channels


def shake_shake_by_layers(width):
    """Parameters of the 26-layer network, layer by layer: stem, three stages of four blocks, classifier."""
    total = convolution(3, 3, 16) + batch_norm(16)
    c_in = 16
    for c_out in (width, 2 * width, 4 * width):
        for _ in range(4):
            for _ in ("branch 1", "branch 2"):
                total += convolution(3, c_in, c_out) + batch_norm(c_out)
                total += convolution(3, c_out, c_out) + batch_norm(c_out)
            if c_in != c_out:
                total += convolution(1, c_in, c_out // 2) + convolution(1, c_in, c_out // 2) + batch_norm(c_out)
            c_in = c_out
    return total + c_in * 10 + 10


@pytest.mark.parametrize(("width", "millions"), [(32, "2.92"), (64, "11.65"), (96, "26.19")])
def test_shake_shake_has_the_published_size(width, millions):
    assert f"{models.parameter_count('shakeshake26', width) / 1e6:.2f}" == millions


@pytest.mark.parametrize("width", [4, 16, 32, 64, 96])  # at 16 the first block needs no convolution in its shortcut
def test_shake_shake_has_the_size_counted_by_layers(width):
    assert models.parameter_count("shakeshake26", width) == shake_shake_by_layers(width)


def test_small_cnn_has_the_size_counted_by_hand():
    """At w = 8.

    Stem: 27 * 8 + 16 = 232. Block 8 -> 8: 2 * (576 + 16) = 1,184. Block 8 -> 16: 1,152 + 2,304 + 64 in the branch and
    128 + 32 in the shortcut, 3,680. Block 16 -> 32: 4,608 + 9,216 + 128 and 512 + 64, 14,528. Classifier: 330.
    """
    assert models.parameter_count("cnn", 8) == 232 + 1_184 + 3_680 + 14_528 + 330 == 19_954


@pytest.mark.parametrize("network", NETWORKS)
def test_a_pack_has_the_parameters_of_its_runs(network):
    pack = models.build(network, WIDTH, [0, 1, 2])
    assert sum(p.numel() for p in pack.parameters()) == 3 * models.parameter_count(network, WIDTH)


# --- packs ----------------------------------------------------------------------------------------------------------


def images(runs=R, side=SIDE):
    return normal(B, runs * 3, side, side)


def shake_of(model, runs=R):
    return uniform(model.shake_blocks, 2, B, runs)


def bn_tensors(bn):
    return bn.weight, bn.bias, bn.running_mean, bn.running_var


def make(network, seeds, train=True):
    """A network in float64 whose BN parameters and statistics are not the initial ones, nor the same in two runs."""
    model = models.build(network, WIDTH, seeds).double()
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            # the numbers of a run come from its seed, as its weights do
            drawn = [torch.rand(4, module.num_features // len(seeds), generator=g) + 0.5 for g in generators]
            with torch.no_grad():
                for i, value in enumerate(bn_tensors(module)):
                    value.copy_(torch.cat([numbers[i] for numbers in drawn]))
    return model.train(train)


def losses(model, x, shake):
    """Cross-entropy of every run [R], labels 0 .. B - 1."""
    logits = model(x, shake)
    return torch.stack([F.cross_entropy(run, torch.arange(B)) for run in logits])


@pytest.mark.parametrize("side", [8, 12, 32])
@pytest.mark.parametrize("network", NETWORKS)
def test_shapes(network, side):
    model = make(network, [0, 1, 2])
    assert model(images(side=side), shake_of(model)).shape == (R, B, 10)
    assert models.NETWORKS[network](WIDTH, 2, classes=7).double()(images(2, side)).shape == (2, B, 7)


@pytest.mark.parametrize("shaken", [True, False], ids=["shake", "mean"])
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("network", NETWORKS)
def test_a_pack_computes_what_separate_runs_compute(network, train, shaken):
    pack, x = make(network, [3, 4, 5], train), images()
    shake = shake_of(pack) if shaken else None
    packed = losses(pack, x, shake)
    packed.sum().backward()
    for r, seed in enumerate([3, 4, 5]):
        single = make(network, [seed], train)
        loss = losses(single, x[:, 3 * r : 3 * r + 3], None if shake is None else shake[..., r : r + 1])
        loss.sum().backward()
        torch.testing.assert_close(packed[r], loss[0], rtol=1e-12, atol=0)
        for (name, p), q in zip(pack.named_parameters(), single.parameters(), strict=True):
            scale = max(q.grad.abs().max().item(), 1e-3)
            torch.testing.assert_close(p.grad.chunk(R)[r], q.grad, rtol=0, atol=1e-11 * scale, msg=name)
        for (name, p), q in zip(pack.named_buffers(), single.buffers(), strict=True):
            if p.ndim:  # running statistics; num_batches_tracked has no run axis
                torch.testing.assert_close(p.chunk(R)[r], q, rtol=1e-12, atol=1e-14, msg=name)


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("network", NETWORKS)
def test_no_gradient_crosses_from_run_to_run(network, train):
    model, x = make(network, [0, 1, 2], train), images().requires_grad_()
    own_loss = losses(model, x, shake_of(model))
    for r in range(R):
        names, parameters = zip(*model.named_parameters(), strict=True)
        gradients = torch.autograd.grad(own_loss[r], (x, *parameters), retain_graph=True)
        parts = [gradients[0].chunk(R, dim=1), *(g.chunk(R) for g in gradients[1:])]
        for name, part in zip(("images", *names), parts, strict=True):
            for s in range(R):
                if s == r:
                    assert (part[s] != 0).any(), name
                else:
                    assert (part[s] == 0).all(), name


# --- shake-shake ----------------------------------------------------------------------------------------------------


def test_shake_shake_forward_and_backward_use_different_coefficients():
    x1, x2 = (normal(4, 3, 2, 2).requires_grad_() for _ in range(2))
    a, b = uniform(4, 1, 1, 1), uniform(4, 1, 1, 1)
    upstream = normal(4, 3, 2, 2)
    out = models.ShakeShake.apply(x1, x2, a, b)
    out.backward(upstream)
    for i in range(4):
        mixed = a[i].item() * x1[i] + (1 - a[i].item()) * x2[i]
        torch.testing.assert_close(out[i], mixed, rtol=1e-15, atol=1e-15)
        torch.testing.assert_close(x1.grad[i], b[i].item() * upstream[i], rtol=1e-15, atol=0)
        torch.testing.assert_close(x2.grad[i], (1 - b[i].item()) * upstream[i], rtol=1e-15, atol=0)


def block_of(c_in=4, c_out=4, stride=1, runs=1):
    return models.ShakeBlock(runs, c_in, c_out, stride).double().eval()


@pytest.mark.parametrize(("c_out", "stride"), [(4, 1), (8, 2)])
def test_backward_coefficients_scale_branches_but_not_the_shortcut(c_out, stride):
    block = block_of(4, c_out, stride)
    x = normal(B, 4, 6, 6).requires_grad_()
    a, b = uniform(2, B, 1)
    upstream = normal(B, c_out, 6 // stride, 6 // stride)
    out = block(x, torch.stack([a, b]))
    out.backward(upstream)
    y1, y2, skip = block.branch1(x), block.branch2(x), block.skip(x)
    a, b = a[..., None, None], b[..., None, None]
    torch.testing.assert_close(out, skip + a * y1 + (1 - a) * y2, rtol=1e-13, atol=1e-13)
    parts = [(block.branch1, y1, b * upstream), (block.branch2, y2, (1 - b) * upstream)]
    expected_x = torch.autograd.grad(skip, x, upstream, retain_graph=True)[0]
    for branch, y, scaled in parts:
        parameters = list(branch.parameters())
        gradients = torch.autograd.grad(y, (x, *parameters), scaled)
        expected_x = expected_x + gradients[0]
        for p, g in zip(parameters, gradients[1:], strict=True):
            torch.testing.assert_close(p.grad, g, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(x.grad, expected_x, rtol=1e-12, atol=1e-12)


def test_the_shortcut_is_not_rectified_and_the_branches_are():
    block = block_of()
    negative = -uniform(B, 4, 6, 6)
    assert torch.equal(block(negative, None), negative)  # both branches see zeros, the shortcut passes x as it is
    assert not torch.equal(block(-negative, None), -negative)


def test_the_stem_does_not_rectify():
    model = make("shakeshake26", [0])
    seen = []
    model.blocks[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(images(1))
    assert (seen[0] < 0).any()


def test_every_block_takes_its_own_coefficients():
    """With a = 1 in block l alone, branch 2 of that block does not count, whatever it holds; branch 1 does."""
    model = make("shakeshake26", [0], train=False)
    assert model.shake_blocks == len(model.blocks) == 12
    x = images(1)
    for number in range(12):
        shake = torch.full((12, 2, B, 1), 0.5)
        shake[number, 0] = 1.0
        before = model(x, shake)
        changed = copy.deepcopy(model)
        nn.init.normal_(changed.blocks[number].branch2[-1].weight)
        assert torch.equal(changed(x, shake), before)
        nn.init.normal_(changed.blocks[number].branch1[-1].weight)
        assert not torch.equal(changed(x, shake), before)


def test_evaluation_mixes_half_and_half_and_is_deterministic():
    model, x = make("shakeshake26", [0, 1, 2], train=False), images()
    first = model(x)
    assert torch.equal(model(x), first)
    torch.testing.assert_close(model(x, torch.full((12, 2, B, R), 0.5)), first, rtol=1e-12, atol=1e-12)
    assert (model(x, shake_of(model)) - first).abs().max() > 1e-3


def test_the_mean_over_draws_of_a_block_is_its_evaluation():
    block, x, draws = block_of(), normal(1, 4, 6, 6), 4000
    shake = uniform(2, draws, 1)
    with torch.no_grad():
        outputs = block(x.expand(draws, -1, -1, -1), shake)
        error = (outputs.mean(0) - block(x, None)[0]) / (outputs.std(0) / math.sqrt(draws))
    assert (
        error.abs().max() < 4
    )  # standard errors; the same coefficient moves every pixel, so it is one draw of N(0, 1)
    half_spread = (block.branch1(x) - block.branch2(x)).abs()[0] / math.sqrt(12)  # sd of U[0, 1] is 1 / sqrt(12)
    torch.testing.assert_close(outputs.std(0), half_spread.detach(), rtol=0.05, atol=0)


# --- the shortcut where widths differ -------------------------------------------------------------------------------


def shortcut_by_loops(skip, x, runs):
    """ReLU; 1x1 convolution of x and of x moved right and down, both subsampled; concat within each run; BN (eval)."""
    batch, channels = x.shape[:2]
    c_in, half = channels // runs, skip.bn.num_features // runs // 2
    weights = [w.detach().numpy().reshape(runs, half, c_in) for w in (skip.conv1.weight, skip.conv2.weight)]
    mean, var = skip.bn.running_mean.numpy(), skip.bn.running_var.numpy()
    scale, shift = skip.bn.weight.detach().numpy(), skip.bn.bias.detach().numpy()
    out = []
    for image in range(batch):
        planes: list[np.ndarray] = []
        for run in range(runs):
            rectified = [np.maximum(x[image, run * c_in + c].numpy(), 0) for c in range(c_in)]
            straight = [plane[:: skip.stride, :: skip.stride] for plane in rectified]
            shifted = [np.array(reference.shifted_rows(plane.tolist(), skip.stride)) for plane in rectified]
            for weight, views in zip(weights, (straight, shifted), strict=True):
                for c_out in range(half):
                    plane = sum(weight[run, c_out, c] * views[c] for c in range(c_in))
                    i = len(planes)
                    planes.append((plane - mean[i]) / np.sqrt(var[i] + 1e-5) * scale[i] + shift[i])
        out.append(planes)
    return np.array(out)


@pytest.mark.parametrize("side", [(6, 6), (5, 8)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("runs", [1, 3])
def test_shifted_shortcut_equals_the_transcription(runs, stride, side):
    skip = models.ShiftedSkip(runs, 3, 4, stride).double().eval()
    for value in bn_tensors(skip.bn):
        nn.init.uniform_(value, 0.5, 1.5)
    x = normal(2, runs * 3, *side)
    np.testing.assert_allclose(skip(x).detach().numpy(), shortcut_by_loops(skip, x, runs), rtol=1e-12, atol=1e-12)


# --- the networks as the protocol describes them, in plain functions ------------------------------------------------


def normed(x, bn):
    return F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=1e-5)


def shake_shake_by_protocol(model, x, shake):
    """One run in evaluation mode: stem without ReLU, blocks with strides 1, 2, 2, ReLU, 8x8 average pool, linear."""
    x = normed(F.conv2d(x, model.stem[0].weight, padding=1), model.stem[1])
    for number, block in enumerate(model.blocks):
        branches = []
        for _, conv1, bn1, _, conv2, bn2 in (block.branch1, block.branch2):
            y = normed(F.conv2d(x.clamp(min=0), conv1.weight, stride=2 if number in (4, 8) else 1, padding=1), bn1)
            branches.append(normed(F.conv2d(y.clamp(min=0), conv2.weight, padding=1), bn2))
        a = shake[number, 0].reshape(B, 1, 1, 1)
        x = (block.skip(x) if number in (0, 4, 8) else x) + a * branches[0] + (1 - a) * branches[1]
    return F.linear(F.avg_pool2d(x.clamp(min=0), 8)[..., 0, 0], model.head.weight, model.head.bias)


def test_shake_shake_computes_what_the_protocol_says():
    model, x = make("shakeshake26", [0], train=False), images(1, side=32)
    shake = shake_of(model, 1)
    expected = shake_shake_by_protocol(model, x, shake)
    torch.testing.assert_close(model(x, shake)[0], expected, rtol=1e-11, atol=1e-11)


def small_cnn_by_description(model, x):
    """One run in evaluation mode: stem of stride 2, post-activation blocks of strides 1, 2, 2, mean, linear."""
    x = normed(F.conv2d(x, model.stem[0].weight, stride=2, padding=1), model.stem[1]).clamp(min=0)
    for stride, block in zip((1, 2, 2), model.blocks, strict=True):
        y = normed(F.conv2d(x, block.conv1.weight, stride=stride, padding=1), block.bn1).clamp(min=0)
        y = normed(F.conv2d(y, block.conv2.weight, padding=1), block.bn2)
        skip = x if stride == 1 else normed(F.conv2d(x, block.skip[0].weight, stride=2), block.skip[1])
        x = (y + skip).clamp(min=0)
    return F.linear(F.avg_pool2d(x, 4)[..., 0, 0], model.head.weight, model.head.bias)


def test_small_cnn_computes_what_its_description_says():
    model, x = make("cnn", [0], train=False), images(1, side=32)
    torch.testing.assert_close(model(x)[0], small_cnn_by_description(model, x), rtol=1e-11, atol=1e-11)


# --- initialisation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("network", "width"), [("cnn", 32), ("shakeshake26", 32)])
def test_initial_numbers_have_the_spread_of_the_released_code(network, width):
    """Convolutions N(0, sqrt(2 / (k k c_out))), classifier U(+-1 / sqrt(c_in)), everything within 5 standard errors."""
    model = models.build(network, width, [7, 8])
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            assert module.bias is None
            for w in module.weight.detach().double().chunk(2):
                kernel, c_out, n = w.shape[-1], w.shape[0], w.numel()
                z = w / math.sqrt(2 / (kernel * kernel * c_out))
                assert z.mean().abs() < 5 / math.sqrt(n), name
                assert (z.std() - 1).abs() < 5 / math.sqrt(2 * n), name
                assert ((z.abs() > 2).double().mean() - 0.0455).abs() < 5 * math.sqrt(0.0455 / n), name
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.eps, module.momentum) == (1e-5, 0.1)
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
    c_in, w = model.head.weight.shape[1], model.head.weight.detach().double()
    z = w * math.sqrt(c_in)  # U(-1, 1): variance 1/3, variance of the square 4/45
    assert z.abs().max() <= 1
    assert z.mean().abs() < 5 / math.sqrt(3 * w.numel())
    assert (z.square().mean() - 1 / 3).abs() < 5 * math.sqrt(4 / 45 / w.numel())
    assert (model.head.bias == 0).all()


@pytest.mark.parametrize("network", NETWORKS)
def test_initial_numbers_of_a_run_depend_on_its_seed_alone(network):
    pack, single, other = (models.build(network, WIDTH, seeds) for seeds in ([3, 4, 5], [4], [6]))
    torch.manual_seed(99)
    again = models.build(network, WIDTH, [5, 4])
    parts = zip(*(model.named_parameters() for model in (pack, single, other, again)), strict=True)
    for (name, p), (_, q), (_, different), (_, r) in parts:
        assert p.dtype == torch.float32
        assert torch.equal(p.chunk(3)[1], q), name
        assert torch.equal(p.chunk(3)[1], r.chunk(2)[1]), name
        assert torch.equal(p.chunk(3)[2], r.chunk(2)[0]), name
        if p.ndim > 1:
            assert not torch.equal(q, different), name
            assert not torch.equal(p.chunk(3)[0], q), name


def test_initialisation_does_not_follow_torchs_default_dtype(float64):
    under_float64 = models.build("cnn", 4, [7]).state_dict()
    torch.set_default_dtype(torch.float32)
    plain = models.build("cnn", 4, [7]).state_dict()
    assert all(v.dtype == torch.float32 for v in plain.values() if v.is_floating_point())
    assert all(torch.equal(under_float64[name], plain[name]) for name in plain)
