"""Networks that hold R runs side by side: the paper's Shake-Shake ResNet and a small residual CNN for CPUs.

Axes: B batch, R runs, C channels of one run, H and W pixels, K classes, L shake-shake blocks.

R runs of the same shape are folded into the channel axis: images are [B, R*3, H, W], every convolution has R groups
and every BatchNorm R*C channels, so standard torch modules do the work and no run can see another. For R = 1 each
network is the ordinary one. Parameters keep the run axis in front: [R*c_out, ...] is [R, c_out, ...] in memory.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv(runs: int, c_in: int, c_out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Convolution without bias, one group per run; `c_in` and `c_out` are those of one run."""
    return nn.Conv2d(runs * c_in, runs * c_out, kernel, stride, kernel // 2, groups=runs, bias=False)


class RunLinear(nn.Module):
    """One linear classifier per run: [B, R*C] -> [R, B, K]."""

    def __init__(self, runs: int, c_in: int, classes: int) -> None:
        super().__init__()
        self.runs = runs
        self.weight = nn.Parameter(torch.empty(runs * classes, c_in))
        self.bias = nn.Parameter(torch.empty(runs * classes))

    def forward(self, x: Tensor) -> Tensor:  # x [B, R*C]
        c_in = self.weight.shape[1]
        per_run = x.reshape(x.shape[0], self.runs, c_in).transpose(0, 1)  # [R, B, C]
        weight = self.weight.reshape(self.runs, -1, c_in).transpose(1, 2)  # [R, C, K]
        return torch.baddbmm(self.bias.reshape(self.runs, 1, -1).to(x.dtype), per_run, weight.to(x.dtype))


class ResidualBlock(nn.Module):
    """conv-BN-ReLU-conv-BN plus skip, then ReLU (He et al. 2016); a 1x1 convolution where the shape changes."""

    def __init__(self, runs: int, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(runs, c_in, c_out, 3, stride), nn.BatchNorm2d(runs * c_out)
        self.conv2, self.bn2 = conv(runs, c_out, c_out, 3), nn.BatchNorm2d(runs * c_out)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or c_in != c_out:
            self.skip = nn.Sequential(conv(runs, c_in, c_out, 1, stride), nn.BatchNorm2d(runs * c_out))

    def forward(self, x: Tensor) -> Tensor:  # [B, R*C, H, W]
        inner = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(inner)) + self.skip(x), inplace=True)


class SmallCNN(nn.Module):
    """Stride-2 stem and three residual blocks of widths w, 2w, 4w: 20 thousand parameters (19,954) at w = 8.

    Not a network of the paper: the largest that trains hundreds of runs on two CPU cores in minutes.
    """

    shake_blocks = 0

    def __init__(self, width: int, runs: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(runs, 3, width, 3, 2), nn.BatchNorm2d(runs * width), nn.ReLU(inplace=True))
        self.blocks = nn.Sequential(
            ResidualBlock(runs, width, width, 1),
            ResidualBlock(runs, width, 2 * width, 2),
            ResidualBlock(runs, 2 * width, 4 * width, 2),
        )
        self.head = RunLinear(runs, 4 * width, classes)

    def forward(self, x: Tensor, shake: Tensor | None = None) -> Tensor:  # x [B, R*3, H, W] -> [R, B, K]
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class ShakeShake(torch.autograd.Function):
    """a x1 + (1 - a) x2 forward, gradients b and 1 - b backward, with independent a and b (Gastaldi 2017)."""

    @staticmethod
    def forward(ctx, x1: Tensor, x2: Tensor, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(b)
        return a * x1 + (1 - a) * x2

    @staticmethod
    def backward(ctx, grad: Tensor):
        (b,) = ctx.saved_tensors
        return b * grad, (1 - b) * grad, None, None


class ShiftedSkip(nn.Module):
    """Skip path where widths differ: ReLU, two subsampled views one pixel apart, 1x1 convolutions, concat, BN.

    The second view is shifted right and down with zero fill before subsampling (released code, shakeshake.lua).
    """

    def __init__(self, runs: int, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.runs, self.stride = runs, stride
        self.conv1, self.conv2 = conv(runs, c_in, c_out // 2, 1), conv(runs, c_in, c_out // 2, 1)
        self.bn = nn.BatchNorm2d(runs * c_out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        shifted = F.pad(x, (1, -1, 1, -1))
        s = self.stride
        a, b = self.conv1(x[:, :, ::s, ::s]), self.conv2(shifted[:, :, ::s, ::s])
        B, _, H, W = a.shape
        both = torch.cat([a.reshape(B, self.runs, -1, H, W), b.reshape(B, self.runs, -1, H, W)], 2)  # within each run
        return self.bn(both.reshape(B, -1, H, W))


class ShakeBlock(nn.Module):
    """Two branches ReLU-conv-BN-ReLU-conv-BN mixed by shake-shake, added to the skip path."""

    def __init__(self, runs: int, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.runs = runs

        def branch() -> nn.Sequential:
            return nn.Sequential(
                nn.ReLU(),
                conv(runs, c_in, c_out, 3, stride),
                nn.BatchNorm2d(runs * c_out),
                nn.ReLU(inplace=True),
                conv(runs, c_out, c_out, 3),
                nn.BatchNorm2d(runs * c_out),
            )

        self.branch1, self.branch2 = branch(), branch()
        self.skip = nn.Identity() if c_in == c_out else ShiftedSkip(runs, c_in, c_out, stride)

    def forward(self, x: Tensor, shake: Tensor | None) -> Tensor:  # shake [2, B, R]: forward and backward coefficients
        y1, y2 = self.branch1(x), self.branch2(x)
        if shake is None:
            return self.skip(x) + 0.5 * y1 + 0.5 * y2
        per_channel = y1.shape[1] // self.runs
        a, b = shake.to(y1.dtype).repeat_interleave(per_channel, 2)[..., None, None]  # each [B, R*C, 1, 1]
        return self.skip(x) + ShakeShake.apply(y1, y2, a, b)


class ShakeShake26(nn.Module):
    """26 2 x `width`d Shake-Shake-Image ResNet (Gastaldi 2017; section 4 of the paper), stem of 16 channels, no ReLU.

    Parameters: 2.92 M at width 32, 11.65 M at 64, 26.19 M at 96.
    """

    shake_blocks = 12

    def __init__(self, width: int, runs: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(runs, 3, 16, 3), nn.BatchNorm2d(runs * 16))
        widths = [16, *([width] * 4), *([2 * width] * 4), *([4 * width] * 4)]
        self.blocks = nn.ModuleList(
            ShakeBlock(runs, c_in, c_out, stride=2 if i in (4, 8) else 1)
            for i, (c_in, c_out) in enumerate(pairwise(widths))
        )
        self.head = RunLinear(runs, 4 * width, classes)

    def forward(self, x: Tensor, shake: Tensor | None = None) -> Tensor:
        """x [B, R*3, H, W], shake [L, 2, B, R] in [0, 1] or None for the mean 0.5 -> logits [R, B, K]."""
        x = self.stem(x)
        for i, block in enumerate(self.blocks):
            x = block(x, None if shake is None else shake[i])
        return self.head(F.relu(x).mean((2, 3)))


NETWORKS: dict[str, type[SmallCNN] | type[ShakeShake26]] = {"cnn": SmallCNN, "shakeshake26": ShakeShake26}


def build(network: str, width: int, seeds: list[int]) -> SmallCNN | ShakeShake26:
    """A network of `len(seeds)` runs in float32 whose run r is initialised from `seeds[r]` alone.

    Convolutions N(0, sqrt(2 / (k^2 c_out))), BN scale 1 and shift 0, classifier weights U(+-1/sqrt(c_in)) and bias 0
    (released code). A run's numbers do not depend on how many runs stand beside it.
    """
    model = NETWORKS[network](width, len(seeds)).to(torch.float32)  # whatever torch's default is
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                c_out = module.out_channels // len(seeds)
                std = math.sqrt(2 / (module.kernel_size[0] * module.kernel_size[1] * c_out))
                for part, generator in zip(module.weight.chunk(len(seeds)), generators, strict=True):
                    part.normal_(0, std, generator=generator)
            elif isinstance(module, RunLinear):
                bound = 1 / math.sqrt(module.weight.shape[1])
                for part, generator in zip(module.weight.chunk(len(seeds)), generators, strict=True):
                    part.uniform_(-bound, bound, generator=generator)
                module.bias.zero_()
    return model


def parameter_count(network: str, width: int) -> int:
    """Number of parameters of one run."""
    with torch.device("meta"):
        return sum(p.numel() for p in NETWORKS[network](width).parameters())
