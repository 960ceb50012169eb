"""What other systems compute, held against torch itself or against transcriptions of their own update loops.

TRANSCRIPTIONS has a scalar loop for every line of `variants.SYSTEMS` (for PyTorch's lines the comparison is with
`torch.optim`, learning rate set before every step). SAME says which systems compute the same thing when they are given
the same lam; all other pairs must be told apart by these comparisons. The real libraries are asked in tests/peers.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from decoupled import variants
from decoupled.optim import RULES
from decoupled.variants import SYSTEMS, NonbiasWeightDecay, Parameter, Shrink, UpdateRule, WeightDecay

# --- the problem: a noisy quadratic in four parameters, 60 steps of cosine --------------------------------------------

STEPS, N, ALPHA = 60, 4, 0.05
_random = np.random.default_rng(2016)
_root = _random.normal(size=(N, N))
CURVATURE = _root @ _root.T / N + np.diag([0.01, 0.3, 1.0, 4.0])
NOISE = _random.normal(size=(STEPS, N))
START = _random.normal(size=N) * 3
ETAS = [0.5 + 0.5 * math.cos(math.pi * step / STEPS) for step in range(STEPS)]
HYPER = {"sgd": {"beta": 0.9}, "adam": {"beta1": 0.8, "beta2": 0.95, "eps": 1e-2}}  # an eps that shows where it stands
LAM = 0.3  # the same number for all: that its effect differs is what the table says


def gradient(t, x):
    """Gradient of 0.5 x' CURVATURE x + x' NOISE[t - 1]."""
    return x @ CURVATURE + NOISE[t - 1]


def follow(rule, family, lam=LAM, alpha=ALPHA, **hyper):
    """The iterates [STEPS, N] of a rule from START."""
    theta, iterates = torch.tensor(START), []
    state: dict[str, torch.Tensor] = {}
    for t, eta in enumerate(ETAS, 1):
        g = torch.tensor(gradient(t, theta.numpy()))
        theta, state = rule(theta, g, state, t, alpha=alpha, eta=eta, lam=lam, **HYPER[family], **hyper)
        iterates.append(theta)
    return torch.stack(iterates).numpy()


def assert_equal(iterates, expected):
    """Agreement to 1e-10 of the largest coordinate, at every step."""
    assert np.isfinite(expected).all()
    assert np.abs(iterates - expected).max() <= 1e-10 * np.abs(expected).max()


# --- the loops of the systems, for one weight; s is what the system remembers of it -----------------------------------
#
# (w, g, s, t, a, e, lam) -> w after step t; a e is the learning rate that the system is told

B, B1, B2, EPS = HYPER["sgd"]["beta"], *HYPER["adam"].values()


def averages(s, g):
    s["m"] = s.get("m", 0.0) + (1 - B1) * (g - s.get("m", 0.0))
    s["v"] = s.get("v", 0.0) + (1 - B2) * (g * g - s.get("v", 0.0))
    return s["m"], s["v"]


def torch7_sgd(w, g, s, t, a, e, lam):
    g += lam * w
    s["buffer"] = s["buffer"] * B + g if "buffer" in s else g
    return w - a * e * s["buffer"]


def torch7_sgdw(w, g, s, t, a, e, lam):
    old = w
    s["buffer"] = s["buffer"] * B + g if "buffer" in s else g
    w -= a * e * s["buffer"]
    return w - lam * e * old


def torch7_adam(w, g, s, t, a, e, lam, l2=True):
    old = w
    m, v = averages(s, g + lam * w if l2 else g)
    denominator = math.sqrt(v) + EPS
    rate = a * e * math.sqrt(1 - B2**t) / (1 - B1**t)
    w -= rate * m / denominator
    return w if l2 else w - lam * e * old


def convnet(w, g, s, t, a, e, lam):
    """cuda-convnet: increments point downhill; the decay joins the increment after momentum and gradient have."""
    increment = B * s.get("increment", 0.0) + a * e * -g
    increment -= lam * (a * e) * w
    s["increment"] = increment
    return w + increment


def caffe(w, g, s, t, a, e, lam, sign=False):
    """Regularize, ComputeUpdateValue, Update."""
    diff = g + lam * ((w > 0) - (w < 0) if sign else w)
    s["history"] = a * e * diff + B * s.get("history", 0.0)
    return w - s["history"]


def chainer_momentum(w, g, s, t, a, e, *, pre=0.0, post=0.0):
    g = g + pre * w
    s["v"] = B * s.get("v", 0.0) - a * e * g
    w += s["v"]
    return w - post * w


def chainer_adam(w, g, s, t, a, e, lam):
    m, v = averages(s, g)
    rate = a * math.sqrt(1 - B2**t) / (1 - B1**t)
    return w - e * (rate * m / (v**0.5 + EPS) + lam * w)


def tf1_momentum(w, g, s, t, a, e, *, before=0.0, penalty=0.0, after=0.0):
    w -= before * w
    s["accumulation"] = B * s.get("accumulation", 0.0) + g + penalty * w
    w -= a * e * s["accumulation"]
    return w - 1.0 * after * w  # the attached SGD has learning rate 1


def epsilon_hat(w, g, s, t, lr):
    """Adam of TensorFlow 1 and Keras: lr_t m / (sqrt(v) + eps)."""
    m, v = averages(s, g)
    return w - lr * math.sqrt(1 - B2**t) / (1 - B1**t) * m / (math.sqrt(v) + EPS)


def keras_sgd(w, g, s, t, a, e, lam):
    lr = a * e
    w = w - w * lam * lr
    s["velocity"] = B * s.get("velocity", 0.0) - lr * g
    return w + s["velocity"]


def keras_adam(w, g, s, t, a, e, lam):
    lr = a * e
    return epsilon_hat(w - w * lam * lr, g, s, t, lr)


def optax(w, g, s, t, a, e, lam):
    m, v = averages(s, g)
    update = m / (1 - B1**t) / (math.sqrt(v / (1 - B2**t)) + EPS)
    return w - a * e * (update + lam * w)


def timm(w, g, s, t, a, e, lam, corrected, adam):
    lr, max_lr = a * e, a
    w *= 1 - lam * (lr**2 / max_lr if corrected else lr)
    if adam:
        m, v = averages(s, g)
        return w - lr / (1 - B1**t) * m / (math.sqrt(v) / math.sqrt(1 - B2**t) + EPS)
    s["buffer"] = B * s["buffer"] + g if "buffer" in s else g
    return w - lr * s["buffer"]


def optimi(w, g, s, t, a, e, lam, fully):
    """The averages are kept corrected: their rates start at 0 and grow towards beta."""
    lr, max_lr = a * e, a
    w *= 1 - (lr / max_lr if fully else lr) * lam
    h1, h2 = ((b**t - b) / (b**t - 1) for b in (B1, B2))
    s["m"] = h1 * s.get("m", 0.0) + (1 - h1) * g
    s["v"] = h2 * s.get("v", 0.0) + (1 - h2) * g * g
    return w - lr * s["m"] / (math.sqrt(s["v"]) + EPS)


def composer(w, g, s, t, a, e, lam):
    lr, initial_lr = a * e, a
    w *= 1 - lr / initial_lr * lam
    m, v = averages(s, g)
    return w - lr / (1 - B1**t) * m / (math.sqrt(v) / math.sqrt(1 - B2**t) + EPS)


def bert(w, g, s, t, a, e, lam):
    w = epsilon_hat(w, g, s, t, a * e)
    return w - a * e * lam * w


def egg_west(w, g, s, t, a, e, lam):
    m, v = averages(s, g)
    step_size = a * e * math.sqrt(1 - B2**t) / (1 - B1**t)
    return w - step_size * (w * lam + m / (math.sqrt(v) + EPS))


TRANSCRIPTIONS: dict[str, Callable[..., float]] = {
    "lua_sgd": torch7_sgd,
    "lua_sgdw": torch7_sgdw,
    "lua_adam": torch7_adam,
    "lua_adamw": functools.partial(torch7_adam, l2=False),
    "cuda_convnet": convnet,
    "caffe": caffe,
    "caffe_l1": functools.partial(caffe, sign=True),
    "chainer_pre_hook": lambda *x: chainer_momentum(*x[:6], pre=x[6]),
    "chainer_post_hook": lambda *x: chainer_momentum(*x[:6], post=x[6]),
    "chainer_adam": chainer_adam,
    "tf1_collection": lambda *x: tf1_momentum(*x[:6], penalty=x[6]),
    "tf1_collection_bug": lambda *x: tf1_momentum(*x[:6]),
    "tf1_attached_sgd": lambda *x: tf1_momentum(*x[:6], after=x[6]),
    "tf1_momentumw": lambda *x: tf1_momentum(*x[:6], before=x[6]),
    "tf1_adamw": lambda w, g, s, t, a, e, lam: epsilon_hat(w - lam * w, g, s, t, a * e),
    "keras_sgd": keras_sgd,
    "keras_adam": keras_adam,
    "keras_adamw": keras_adam,
    "optax_adamw": optax,
    "timm_sgdw": functools.partial(timm, corrected=False, adam=False),
    "timm_sgdw_corrected": functools.partial(timm, corrected=True, adam=False),
    "timm_adamw_corrected": functools.partial(timm, corrected=True, adam=True),
    "optimi_adam_decouple_wd": functools.partial(optimi, fully=False),
    "optimi_adam_decouple_lr": functools.partial(optimi, fully=True),
    "composer_adamw": composer,
    "huggingface_adamw": bert,
    "egg_west_adamw": egg_west,
}
_ADAM: dict[str, Any] = {"betas": (B1, B2), "eps": EPS}
TORCH: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "pytorch_sgd": functools.partial(torch.optim.SGD, momentum=B),
    "pytorch_adam": functools.partial(torch.optim.Adam, **_ADAM),
    "pytorch_adamw": functools.partial(torch.optim.AdamW, **_ADAM),
}
if not set(SYSTEMS) == {*TRANSCRIPTIONS, *TORCH}:
    raise LookupError(f"every system needs one comparison: {set(SYSTEMS) ^ {*TRANSCRIPTIONS, *TORCH}}")


def transcribed(loop):
    """The iterates of a scalar loop, coordinate by coordinate."""
    w, iterates = START.tolist(), []
    memories: list[dict[str, float]] = [{} for _ in range(N)]
    for t, eta in enumerate(ETAS, 1):
        g = gradient(t, np.array(w)).tolist()
        w = [loop(w[i], g[i], memories[i], t, ALPHA, eta, LAM) for i in range(N)]
        iterates.append(w)
    return np.array(iterates)


def of_torch(optimizer_class):
    """The iterates of a torch optimizer whose learning rate is set before every step."""
    p = nn.Parameter(torch.tensor(START))
    optimizer, iterates = optimizer_class([p], lr=ALPHA, weight_decay=LAM), []
    for t, eta in enumerate(ETAS, 1):
        optimizer.param_groups[0]["lr"] = ALPHA * eta
        p.grad = torch.tensor(gradient(t, p.detach().numpy()))
        optimizer.step()
        iterates.append(p.detach().numpy().copy())
    return np.array(iterates)


@functools.cache
def expected(name):
    return of_torch(TORCH[name]) if name in TORCH else transcribed(TRANSCRIPTIONS[name])


def agrees(name, rule):
    assert_equal(follow(rule, SYSTEMS[name].family), expected(name))


@pytest.mark.parametrize("name", SYSTEMS)
def test_iterates(name):
    agrees(name, SYSTEMS[name].rule)


# --- what must be told apart ------------------------------------------------------------------------------------------

SAME = [
    {"lua_sgd", "pytorch_sgd", "tf1_collection"},
    {"caffe", "cuda_convnet", "chainer_pre_hook"},
    {"pytorch_adamw", "optax_adamw", "optimi_adam_decouple_wd"},
    {"optimi_adam_decouple_lr", "composer_adamw"},
    {"lua_adamw", "chainer_adam"},
    {"keras_adam", "keras_adamw"},
]


@pytest.mark.parametrize("name", SYSTEMS)
def test_another_system_is_another_rule_unless_said_to_be_the_same(name):
    """Places, amounts, eps and the side of the rate: each is what tells some pair of systems apart."""
    same = next((group for group in SAME if name in group), {name})
    for other, system in SYSTEMS.items():
        if system.family != SYSTEMS[name].family:
            continue
        if other in same:
            agrees(name, system.rule)
            assert system.formula == SYSTEMS[name].formula
        else:
            assert system.formula != SYSTEMS[name].formula
            with pytest.raises(AssertionError):
                agrees(name, system.rule)


FAULTS: dict[str, Callable] = {
    "decay dropped": lambda rule, lam, **kw: rule(lam=0.0 * lam, **kw),
    "decay of the wrong sign": lambda rule, lam, **kw: rule(lam=-lam, **kw),
    "decay multiplied by alpha": lambda rule, lam, alpha, **kw: rule(lam=lam * alpha, alpha=alpha, **kw),
    "decay multiplied by eta": lambda rule, lam, eta, **kw: rule(lam=lam * eta, eta=eta, **kw),
    "decay divided by eta": lambda rule, lam, eta, **kw: rule(lam=lam / eta, eta=eta, **kw),
    "eta omitted": lambda rule, eta, **kw: rule(eta=1.0, **kw),
    "alpha and eta in one": lambda rule, alpha, eta, **kw: rule(alpha=alpha * eta, eta=1.0, **kw),
    "state forgotten": lambda rule, state, **kw: rule(state={}, **kw),
}
HARMLESS = {
    "alpha and eta in one": {name for name in SYSTEMS if SYSTEMS[name].lr == SYSTEMS[name].schedule},
    **{fault: {"tf1_collection_bug"} for fault in FAULTS if fault.startswith("decay")},
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", SYSTEMS)
def test_mutation_is_found(name, fault):
    def mutant(theta, g, state, t, **hyper):
        def rule(state, **hyper):
            return SYSTEMS[name].rule(theta, g, state, t, **hyper)

        return FAULTS[fault](rule, state=state, **hyper)

    if name in HARMLESS.get(fault, ()):
        agrees(name, mutant)
    else:
        with pytest.raises(AssertionError):
            agrees(name, mutant)


# --- what the table says of each system -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_decay_goes_with_learning_rate_and_schedule_as_the_table_says(name, float64):
    """The first step without any gradient is decay alone: how does it grow with alpha and with eta?"""
    system, theta = SYSTEMS[name], torch.tensor([2.0, -1.5])

    def removed(alpha, eta):
        hyper = {"alpha": alpha, "eta": eta, "lam": 0.01, **HYPER[system.family]}
        if "eps" in hyper:
            hyper["eps"] = 1e-200  # under L2 the step is then alpha eta sign(theta)
        return theta - system.rule(theta, torch.zeros(2), {}, 1, **hyper)[0]

    if system.lr == "no decay":
        assert system.schedule == "no decay"
        assert torch.equal(removed(0.3, 0.5), torch.zeros(2))
        return
    power: dict[str, int] = {"no": 0, "yes": 1, "squared": 2}
    grown = (removed(0.3, 0.5) / removed(0.1, 0.5)).log() / math.log(3)
    assert grown.tolist() == pytest.approx([power[system.lr]] * 2, abs=1e-9)
    grown = (removed(0.3, 0.5) / removed(0.3, 0.25)).log() / math.log(2)
    assert grown.tolist() == pytest.approx([power[system.schedule]] * 2, abs=1e-9)


@pytest.mark.parametrize("name", TORCH)
def test_default_of_pytorch(name):
    optimizer = TORCH[name]([nn.Parameter(torch.zeros(2))], lr=0.1)
    assert SYSTEMS[name].default == optimizer.defaults["weight_decay"]


@pytest.mark.parametrize("name", SYSTEMS)
def test_rules_write_nothing_in_place_and_need_lam(name, float64):
    system = SYSTEMS[name]
    theta, g = torch.tensor([2.0, -3.0]), torch.tensor([0.3, -0.5])
    state = {buffer: torch.tensor([0.1, 0.2]) for buffer in ("m", "v")[: 1 + (system.family == "adam")]}
    before = [x.clone() for x in (theta, g, *state.values())]
    after, new = system.rule(theta, g, state, 2, alpha=0.1, eta=0.5, lam=0.02, **HYPER[system.family])
    assert all(torch.equal(x, old) for x, old in zip((theta, g, *state.values()), before, strict=True))
    assert list(new) == list(state)
    assert after.dtype == torch.float64
    with pytest.raises(TypeError, match="lam"):
        system.rule(theta, g, state, 2, alpha=0.1, eta=0.5)


@pytest.mark.parametrize("name", SYSTEMS)
def test_stacked_runs_equal_separate_runs(name, float64):
    system, gradients = SYSTEMS[name], torch.randn(10, 3, 4, 2)
    hyper = {"alpha": [0.1, 0.02, 0.3], "lam": [0.03, 0.1, 0.0], "eta": [1.0, 0.3, 0.7]}

    def last(theta, gradients, hyper):
        state: dict[str, torch.Tensor] = {}
        for t, g in enumerate(gradients, 1):
            theta, state = system.rule(theta, g, state, t, **hyper, **HYPER[system.family])
        return theta

    start = torch.randn(3, 4, 2)
    stacked = last(start, gradients, {key: torch.tensor(x) for key, x in hyper.items()})
    for r in range(3):
        single = last(start[r], gradients[:, r], {key: x[r] for key, x in hyper.items()})
        torch.testing.assert_close(stacked[r], single, rtol=1e-14, atol=0)


def test_formulas():
    """One of each place and amount, spelled out."""
    told = {name: SYSTEMS[name].formula for name in SYSTEMS}
    assert told["pytorch_sgd"] == (
        r"m \leftarrow \beta m + g + \lambda \theta,\quad \theta \leftarrow \theta - \alpha\eta\, m"
    )
    assert told["caffe_l1"] == (
        r"m \leftarrow \beta m + \alpha\eta\, (g + \lambda \operatorname{sign} \theta),"
        r"\quad \theta \leftarrow \theta - m"
    )
    assert told["tf1_collection_bug"] == (r"m \leftarrow \beta m + g,\quad \theta \leftarrow \theta - \alpha\eta\, m")
    assert told["huggingface_adamw"].endswith(
        r"\theta \leftarrow (1 - \alpha\eta\lambda) (\theta - \alpha\eta\, c_t\, m / (\sqrt{v} + \epsilon))"
    )
    assert told["timm_sgdw_corrected"].endswith(r"(1 - \alpha\eta^2\lambda)\, \theta - \alpha\eta\, m")
    assert all(text.count("{") == text.count("}") and text.count("(") == text.count(")") for text in told.values())


# --- single systems ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "toward"), [("L2", [2.0, -3.0, 0.0]), ("L1", [1.0, -1.0, 0.0])])
def test_caffe_multiplies_the_decay_of_each_parameter(kind, toward, float64):
    theta, zero = torch.tensor([2.0, -3.0, 0.0]), torch.zeros(3)
    for multiplier in (0.0, 1.0, 2.0):
        after, _ = variants.caffe(
            theta, zero, {}, 1, alpha=0.1, eta=0.5, lam=0.02, decay_mult=multiplier, regularization_type=kind
        )
        assert (theta - after).tolist() == pytest.approx([0.05 * 0.02 * multiplier * x for x in toward], abs=1e-15)


def test_caffe_knows_two_regularizations():
    with pytest.raises(ValueError) as error:
        variants.caffe(torch.ones(1), torch.ones(1), {}, 1, alpha=1, eta=1, lam=1, regularization_type="L3")
    assert str(error.value) == "regularization_type must be 'L1' or 'L2', got 'L3'"


def test_caffe_is_algorithm_1_as_printed_and_not_decay_after_the_gradient():
    """Decay by W (1 - 0.0005) after the gradient is a common account of Caffe; its own code does not do that."""
    agrees("caffe", RULES["sgd_algorithm1"].update)
    with pytest.raises(AssertionError):
        agrees("caffe", SYSTEMS["chainer_post_hook"].rule)


def test_the_recipe_for_tensorflow_decays_nothing():
    """To the bit: whatever the coefficient, it is SGD without decay."""
    without = follow(RULES["sgd"].update, "sgd", lam=0.0)
    for lam in (0.0, 0.3, 1e6):
        assert np.array_equal(follow(SYSTEMS["tf1_collection_bug"].rule, "sgd", lam=lam), without)
    assert np.array_equal(follow(variants.tf1_collection, "sgd", put="x", read="x"), follow(RULES["sgd"].update, "sgd"))


@pytest.mark.parametrize("name", ["lua_adamw", "chainer_adam"])
def test_the_paper_s_own_form_up_to_the_place_of_eps(name):
    def with_eps_of_optim(theta, g, state, t, eps, **hyper):
        return RULES["adamw"].update(theta, g, state, t, eps=eps / math.sqrt(1 - B2**t), **hyper)

    agrees(name, with_eps_of_optim)
    with pytest.raises(AssertionError):
        agrees(name, RULES["adamw"].update)


@pytest.mark.parametrize("alpha", [0.1, 0.05, 0.025])
def test_decay_of_the_updated_weights_differs_by_lam_times_the_step(alpha, float64):
    theta, g, lam = torch.tensor([2.0, -3.0]), torch.tensor([0.3, -0.5]), 0.01
    post, _ = SYSTEMS["chainer_post_hook"].rule(theta, g, {}, 1, alpha=alpha, eta=1.0, lam=lam)
    paper, _ = RULES["sgdw_algorithm1"].update(theta, g, {}, 1, alpha=alpha, eta=1.0, lam=lam)
    assert (post - paper).tolist() == pytest.approx((lam * alpha * g).tolist(), rel=1e-9)


def number(x):
    assert x is not None
    return x.item()


# --- Chainer's hooks --------------------------------------------------------------------------------------------------

MOMENTUM_SGD = RULES["sgd_algorithm1"].update


def descent(theta, g, state, t, *, alpha, eta, lam):
    return theta - alpha * eta * g, state


def chained(hook, timing="auto", rule=MOMENTUM_SGD, **hyper):
    """The iterates of an UpdateRule with one hook."""
    update = UpdateRule(rule, alpha=ALPHA, **hyper)
    if hook is not None:
        update.add_hook(hook, timing=timing)
    param, iterates = Parameter(torch.tensor(START), name="W"), []
    for t, eta in enumerate(ETAS, 1):
        update.hyper["eta"] = eta
        param.grad = torch.tensor(gradient(t, param.array.numpy()))
        update.update(param)
        assert update.t == t
        iterates.append(param.array.numpy())
    return np.array(iterates)


def test_a_pre_hook_is_l2_and_a_post_hook_shrinks_the_updated_weights():
    assert_equal(chained(WeightDecay(LAM)), expected("chainer_pre_hook"))
    assert_equal(chained(Shrink(LAM)), expected("chainer_post_hook"))
    assert_equal(chained(None, rule=SYSTEMS["chainer_adam"].rule, lam=LAM, **HYPER["adam"]), expected("chainer_adam"))


def test_weight_decay_in_the_post_place_decays_nothing():
    assert np.array_equal(chained(WeightDecay(LAM), timing="post"), chained(None))


def test_hooks_run_in_the_order_of_registration_around_the_update():
    heard = []

    def hook(text, timing):
        def call(rule, param):
            heard.append((text, rule.t, param.array.item()))

        call.timing = timing  # type: ignore[attr-defined]
        return call

    update = UpdateRule(descent, alpha=1.0)
    for name in ("late", "later"):
        update.add_hook(hook(name, "post"), name)
    for name in ("first", "second"):
        update.add_hook(hook(name, "pre"), name)
    update.add_hook(hook("told", "post"), "told", timing="pre")  # the argument outweighs the hook's own timing
    param = Parameter(torch.tensor([5.0]), torch.tensor([1.0]))
    update.update(param)
    assert heard == [("first", 1, 5.0), ("second", 1, 5.0), ("told", 1, 5.0), ("late", 1, 4.0), ("later", 1, 4.0)]
    for name in ("first", "late", "told"):
        update.remove_hook(name)
    heard.clear()
    update.update(param)
    assert [text for text, *_ in heard] == ["second", "later"]
    with pytest.raises(KeyError):
        update.remove_hook("first")


def test_a_hook_is_called_by_name_and_the_default_place_is_before():
    def plain(rule, param):
        param.grad = param.grad * 0

    update = UpdateRule(descent, alpha=1.0)
    update.add_hook(plain)
    param = Parameter(torch.tensor([5.0]), torch.tensor([1.0]))
    update.update(param)
    assert param.array.item() == 5.0
    update.remove_hook("plain")


class Nameless:
    def __call__(self, rule, param):
        pass

    def __repr__(self):  # without the address: tests named after it must have the same name in every process
        return "Nameless()"


class Mistimed(Nameless):
    name, timing = "Mistimed", "never"


NAMELESS = Nameless()
BAD_HOOKS = [
    ((3,), {}, TypeError, "a hook must be callable, got 3"),
    ((WeightDecay(0.1),), {"timing": "later"}, ValueError, "timing must be 'pre', 'post' or 'auto', got 'later'"),
    ((Mistimed(),), {}, ValueError, "timing must be 'pre', 'post' or 'auto', got 'never'"),
    ((NAMELESS,), {}, ValueError, "Nameless() has no name, and none was given"),
    ((WeightDecay(0.1),), {}, ValueError, "there is already a hook 'WeightDecay'"),
    ((NAMELESS, "WeightDecay"), {"timing": "post"}, ValueError, "there is already a hook 'WeightDecay'"),
]


@pytest.mark.parametrize(("hook", "options", "kind", "message"), BAD_HOOKS)
def test_bad_hook_is_refused(hook, options, kind, message):
    update = UpdateRule(descent, alpha=1.0)
    update.add_hook(WeightDecay(0.5))
    with pytest.raises(kind) as error:
        update.add_hook(*hook, **options)
    assert str(error.value) == message
    param = Parameter(torch.tensor([2.0]), torch.tensor([0.0]))
    update.update(param)
    assert param.array.item() == 1.0  # the hook that was there still is, alone
    update.add_hook(NAMELESS, "named")


def test_the_gradient_is_unscaled_before_the_decay_is_added():
    """g = 1 with scale 8 arrives as 8; decay 0.5 * 4 = 2: the step is 3. Divided with the gradient it would be 1.25."""
    update = UpdateRule(descent, alpha=1.0)
    update.add_hook(WeightDecay(0.5))
    param = Parameter(torch.tensor([4.0]), torch.tensor([8.0]), loss_scale=8.0)
    update.update(param)
    assert param.array.item() == 1.0
    assert number(param.grad) == 3.0  # in place of the user's, as in Chainer


@pytest.mark.parametrize("scale", [None, 1024.0])
def test_master_copy_in_float32(scale):
    """lam alpha = 1e-4 is lost in float16 at every single step, and adds up in the master copy."""
    start = torch.tensor([1.0, -3.0], dtype=torch.float16)
    results = {}
    for fp32_update in (False, True):
        update = UpdateRule(descent, fp32_update=fp32_update, alpha=0.1)
        update.add_hook(WeightDecay(1e-3))
        param = Parameter(start, name="W", loss_scale=scale)
        for _ in range(200):
            param.grad = torch.zeros(2, dtype=torch.float16)
            update.update(param)
        assert param.array.dtype == torch.float16
        results[fp32_update] = param.array
        if fp32_update:
            assert update.master is not None
            assert update.master.array.dtype == torch.float32
            assert update.master.name == "W"
            assert update.master.grad is None  # cleared
            assert param.grad is not None and not param.grad.any()  # the user's own is left as it was
            exact = start.float() * (1 - 1e-4) ** 200
            torch.testing.assert_close(update.master.array, exact, rtol=1e-5, atol=0)
            assert torch.equal(param.array, update.master.array.half())
        else:
            assert update.master is None
    assert torch.equal(results[False], start)
    assert not torch.equal(results[True], start)


def test_master_copy_sees_the_scaled_gradient_and_leaves_other_types_alone():
    update = UpdateRule(descent, fp32_update=True, alpha=1.0)
    update.add_hook(WeightDecay(0.5))
    param = Parameter(
        torch.tensor([4.0], dtype=torch.float16), torch.tensor([8.0], dtype=torch.float16), loss_scale=8.0
    )
    update.update(param)
    assert param.array.item() == 1.0
    assert number(param.grad) == 8.0
    single = UpdateRule(descent, fp32_update=True, alpha=1.0)
    single.update(Parameter(torch.ones(1), torch.ones(1)))
    assert single.master is None


def test_disabled_rule_does_nothing():
    update = UpdateRule(MOMENTUM_SGD, alpha=1.0)
    update.add_hook(WeightDecay(0.5))
    update.add_hook(Shrink(0.5))
    param = Parameter(torch.tensor([4.0]), torch.tensor([1.0]), loss_scale=2.0)
    update.enabled = False
    update.update(param)
    assert (param.array.item(), number(param.grad), update.t, update.state) == (4.0, 1.0, 0, {})
    update.enabled = True
    update.update(param)
    assert (param.array.item(), update.t) == ((4 - (0.5 + 2)) / 2, 1)


@pytest.mark.parametrize("fp32_update", [False, True])
def test_a_parameter_without_gradient_is_left_alone(fp32_update):
    update = UpdateRule(MOMENTUM_SGD, fp32_update=fp32_update, alpha=1.0)
    update.add_hook(NonbiasWeightDecay(0.5))
    update.add_hook(Shrink(0.5))
    param = Parameter(torch.tensor([4.0], dtype=torch.float16), loss_scale=2.0)
    update.update(param)
    assert (param.array.item(), param.grad, update.t) == (4.0, None, 1)


@pytest.mark.parametrize(
    ("name", "decays"), [("b", False), ("W", True), ("gamma", True), ("beta", True), ("bias", True), (None, True)]
)
@pytest.mark.parametrize("fp32_update", [False, True])
def test_nonbias_weight_decay_goes_by_the_name_b_alone(name, decays, fp32_update):
    dtype = torch.float16 if fp32_update else torch.float32
    update = UpdateRule(descent, fp32_update=fp32_update, alpha=1.0)
    update.add_hook(NonbiasWeightDecay(0.5))
    param = Parameter(torch.tensor([4.0], dtype=dtype), torch.tensor([0.0], dtype=dtype), name=name)
    update.update(param)
    assert param.array.item() == (2.0 if decays else 4.0)
