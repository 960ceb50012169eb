"""optim.py for ordinary torch code: the classes SGDW and AdamW, parameter kinds and groups, normalized decay."""

import copy
import io
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from decoupled import models
from decoupled.optim import KINDS, RULES, SGDW, AdamW, check_kinds, decay_groups, normalized, parameter_kinds
from decoupled.schedules import cosine

pytestmark = pytest.mark.usefixtures("float64")

CLASSES: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgdw": (SGDW, {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.02}),
    "adamw": (AdamW, {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.02}),
}
OTHER: dict[
    str, dict[str, Any]
] = {  # every hyperparameter different, for a second group or for an optimizer that loads a state
    "sgdw": {"lr": 0.03, "momentum": 0.5, "weight_decay": 0.0},
    "adamw": {"lr": 0.003, "betas": (0.7, 0.9), "eps": 1e-2, "weight_decay": 0.0},
}
LETTERS = {"lr": "alpha", "momentum": "beta", "weight_decay": "lam", "eps": "eps"}


def make_model():
    """A small network whose first bias is frozen."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    model[0].bias.requires_grad_(False)
    return model


def backward(model, step):
    """Loss of batch number `step`, with its gradients."""
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(step))
    model.zero_grad()
    loss = F.cross_entropy(model(x), (x.sum(1) > 0).long())
    loss.backward()
    return loss


def train(model, optimizer, steps):
    for step in steps:
        backward(model, step)
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def hyper_of(options):
    """Keywords of a rule from keywords of a class."""
    betas = options.get("betas", ())
    named = {LETTERS[key]: value for key, value in options.items() if key != "betas"}
    return named | {f"beta{i}": beta for i, beta in enumerate(betas, 1)}


def same_bits(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def through_a_file(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("name", CLASSES)
def test_class_equals_the_rule_in_every_group(name):
    optimizer_class, options = CLASSES[name]
    model = make_model()
    twin = copy.deepcopy(model)
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters(), **OTHER[name]}]
    optimizer, eta = optimizer_class(groups, **options, schedule=cosine(20)), cosine(20)
    states: dict[str, dict] = {key: {} for key, _ in twin.named_parameters()}
    for step in range(20):
        backward(twin, step)
        with torch.no_grad():
            for key, p in twin.named_parameters():
                if key != "0.bias":
                    hyper = hyper_of(options if key.startswith("0") else OTHER[name])
                    new, states[key] = RULES[name].update(p, p.grad, states[key], step + 1, eta=eta(step), **hyper)
                    p.copy_(new)
        train(model, optimizer, [step])
        assert same_bits(list(model.parameters()), list(twin.parameters()))
    assert torch.equal(model[0].bias, twin[0].bias)
    assert model[0].bias not in optimizer.state


@pytest.mark.parametrize("load", [copy.deepcopy, through_a_file], ids=["in memory", "through a file"])
@pytest.mark.parametrize("name", CLASSES)
def test_state_dict_continues_to_the_same_bits(name, load):
    optimizer_class, options = CLASSES[name]
    model = make_model()
    optimizer = optimizer_class(model.parameters(), **options, schedule=cosine(20))
    train(model, optimizer, range(8))
    saved = load(optimizer.state_dict())
    resumed_model = copy.deepcopy(model)
    resumed = optimizer_class(resumed_model.parameters(), **OTHER[name], schedule=cosine(20))
    resumed.load_state_dict(saved)
    forgetful_model = copy.deepcopy(model)
    forgetful = optimizer_class(forgetful_model.parameters(), **options, schedule=cosine(20))
    expected = train(model, optimizer, range(8, 20))
    assert same_bits(train(resumed_model, resumed, range(8, 20)), expected)
    assert not same_bits(train(forgetful_model, forgetful, range(8, 20)), expected)


@pytest.mark.parametrize("name", CLASSES)
def test_gradients_are_read_and_not_kept(name):
    """No buffer may share memory with a gradient that the next backward pass overwrites in place."""
    optimizer_class, options = CLASSES[name]
    p, q = (nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(2))
    reused, fresh = optimizer_class([p], **options), optimizer_class([q], **options)
    p.grad = torch.zeros(2)
    for step in range(5):
        gradient = torch.tensor([1.0, step - 3.0])
        p.grad.copy_(gradient)
        q.grad = gradient.clone()
        reused.step()
        fresh.step()
        assert torch.equal(p.grad, gradient)
        assert torch.equal(p, q)


@pytest.mark.parametrize("name", CLASSES)
def test_schedule_receives_the_number_of_updates_already_made(name):
    optimizer_class, options = CLASSES[name]
    asked = []

    def eta(step):
        asked.append(step)
        return 0.5

    model = nn.Linear(3, 2, bias=False)
    train(model, optimizer_class(model.parameters(), **options, schedule=eta), range(4))
    assert asked == [0, 1, 2, 3]


@pytest.mark.parametrize("name", CLASSES)
def test_schedule_counts_updates_of_the_group_not_of_a_parameter(name):
    optimizer_class, options = CLASSES[name]
    early, late = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    calls: list[int] = []
    optimizer = optimizer_class([early, late], **options, schedule=lambda step: calls.append(step) or 0.5)  # type: ignore[func-returns-value]
    for step in range(3):
        early.grad = torch.zeros(2)
        late.grad = torch.zeros(2) if step == 2 else None
        optimizer.step()
    assert calls == [0, 1, 2]


@pytest.mark.parametrize("name", CLASSES)
def test_a_copy_keeps_the_schedule(name):
    optimizer_class, options = CLASSES[name]
    optimizer = optimizer_class([nn.Parameter(torch.ones(2))], **options, schedule=cosine(10))
    twin = copy.deepcopy(optimizer)
    twin.param_groups[0]["params"][0].grad = torch.zeros(2)
    twin.step()
    assert twin.schedule(5) == pytest.approx(0.5)


def test_a_bad_group_is_not_taken_in():
    optimizer = SGDW([nn.Parameter(torch.ones(2))], lr=0.1, weight_decay=0.01)
    with pytest.raises(ValueError, match="lr must be"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "lr": -1.0})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("name", CLASSES)
def test_without_a_schedule_eta_is_one(name):
    optimizer_class, options = CLASSES[name]
    model = make_model()
    twin = copy.deepcopy(model)
    plain = train(model, optimizer_class(model.parameters(), **options), range(5))
    constant = optimizer_class(twin.parameters(), **options, schedule=lambda step: 1.0)
    assert same_bits(plain, train(twin, constant, range(5)))


@pytest.mark.parametrize("name", CLASSES)
def test_closure_is_evaluated_with_gradients_and_its_value_returned(name):
    optimizer_class, options = CLASSES[name]
    model = make_model()
    twin = copy.deepcopy(model)
    optimizer = optimizer_class(model.parameters(), **options)
    with torch.no_grad():
        losses = [optimizer.step(lambda step=step: backward(model, step)).item() for step in range(5)]
    twin_optimizer = optimizer_class(twin.parameters(), **options)
    assert twin_optimizer.step() is None
    expected = []
    for step in range(5):
        expected.append(backward(twin, step).item())
        twin_optimizer.step()
    assert losses == expected
    assert same_bits(list(model.parameters()), list(twin.parameters()))


@pytest.mark.parametrize("name", CLASSES)
def test_decay_is_not_multiplied_by_the_learning_rate(name):
    optimizer_class, options = CLASSES[name]
    p = nn.Parameter(torch.tensor([2.0, -4.0]))
    p.grad = torch.zeros(2)
    optimizer_class([p], **options, schedule=lambda step: 0.5).step()
    assert p.tolist() == pytest.approx([2.0 * 0.99, -4.0 * 0.99], rel=1e-15)


RATE = "must be a finite number >= 0, got"
BAD: list[tuple[str, dict[str, Any], str]] = [
    ("sgdw", {"lr": -0.1}, f"lr {RATE} -0.1"),
    ("sgdw", {"lr": math.nan}, f"lr {RATE} nan"),
    ("sgdw", {"weight_decay": -1e-4}, f"weight_decay {RATE} -0.0001"),
    ("sgdw", {"weight_decay": math.inf}, f"weight_decay {RATE} inf"),
    ("sgdw", {"momentum": 1.0}, "momentum must be in [0, 1), got 1.0"),
    ("sgdw", {"momentum": -0.1}, "momentum must be in [0, 1), got -0.1"),
    ("adamw", {"lr": math.inf}, f"lr {RATE} inf"),
    ("adamw", {"weight_decay": math.nan}, f"weight_decay {RATE} nan"),
    ("adamw", {"eps": -1e-8}, f"eps {RATE} -1e-08"),
    ("adamw", {"betas": (1.0, 0.9)}, "betas must be in [0, 1), got (1.0, 0.9)"),
    ("adamw", {"betas": (0.9, math.nan)}, "betas must be in [0, 1), got (0.9, nan)"),
    ("adamw", {"betas": (0.9,)}, "betas must be two numbers, got (0.9,)"),
    ("adamw", {"lr": "1"}, f"lr {RATE} '1'"),
]


@pytest.mark.parametrize("in_group", [False, True], ids=["argument", "group"])
@pytest.mark.parametrize(("name", "bad", "message"), BAD)
def test_bad_hyperparameter_is_refused(name, bad, message, in_group):
    optimizer_class, options = CLASSES[name]
    p = nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError) as error:
        optimizer_class([{"params": [p], **bad}] if in_group else [p], **(options if in_group else options | bad))
    assert str(error.value) == message


@pytest.mark.parametrize("name", CLASSES)
def test_weight_decay_has_no_silent_default(name):
    with pytest.raises(TypeError, match="weight_decay"):
        CLASSES[name][0]([nn.Parameter(torch.zeros(2))], 0.1)


@pytest.mark.parametrize("name", CLASSES)
def test_sparse_gradients_are_refused(name):
    optimizer_class, options = CLASSES[name]
    embedding = nn.Embedding(5, 2, sparse=True)
    embedding(torch.tensor([1, 3])).sum().backward()
    with pytest.raises(RuntimeError, match=rf"^{optimizer_class.__name__} does not take sparse gradients$"):
        optimizer_class(embedding.parameters(), **options).step()


# --- kinds and groups -----------------------------------------------------------------------------------------------


def mixed_model():
    return nn.ModuleDict(
        {
            "conv": nn.Conv2d(3, 4, 3),
            "linear": nn.Linear(4, 4),
            "recurrent": nn.LSTM(4, 4),
            "attention": nn.MultiheadAttention(4, 2),
            "batch": nn.BatchNorm2d(4),
            "layer": nn.LayerNorm(4),
            "group": nn.GroupNorm(2, 4),
            "rms": nn.RMSNorm(4),
            "plain": nn.BatchNorm1d(4, affine=False),
            "nested": nn.Sequential(nn.Linear(4, 2, bias=False), nn.InstanceNorm1d(2, affine=True)),
        }
    )


EXPECTED_KINDS = {
    "weight": "conv.weight linear.weight recurrent.weight_ih_l0 recurrent.weight_hh_l0 attention.in_proj_weight "
    "attention.out_proj.weight nested.0.weight",
    "bias": "conv.bias linear.bias recurrent.bias_ih_l0 recurrent.bias_hh_l0 attention.in_proj_bias "
    "attention.out_proj.bias",
    "norm_scale": "batch.weight layer.weight group.weight rms.weight nested.1.weight",
    "norm_bias": "batch.bias layer.bias group.bias nested.1.bias",
}


def test_kinds_of_an_ordinary_model():
    kinds = parameter_kinds(mixed_model())
    found = {kind: sorted(name for name in kinds if kinds[name] == kind) for kind in KINDS}
    assert found == {kind: sorted(names.split()) for kind, names in EXPECTED_KINDS.items()}


@pytest.mark.parametrize(("network", "convolutions", "norms"), [("cnn", 9, 9), ("shakeshake26", 55, 52)])
def test_kinds_of_our_networks(network, convolutions, norms):
    """Every convolution is without bias; one classifier has one.

    cnn: stem, 3 x 2 in blocks, 2 shortcuts. shakeshake26: stem, 12 blocks x 2 branches x 2, 3 shortcuts with two
    convolutions and one BN each.
    """
    kinds = list(parameter_kinds(models.build(network, 4, [0, 1])).values())
    assert len(kinds) == convolutions + 1 + 1 + 2 * norms
    assert kinds.count("weight") == convolutions + 1
    assert kinds.count("bias") == 1
    assert kinds.count("norm_scale") == kinds.count("norm_bias") == norms


def test_a_model_that_is_one_layer_or_shares_one():
    assert parameter_kinds(nn.Linear(2, 2)) == {"weight": "weight", "bias": "bias"}
    shared = nn.Linear(2, 2)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    assert [len(group["params"]) for group in decay_groups(model, 0.1)] == [2]


@pytest.mark.parametrize("kinds", [KINDS, ("weight",), "weight", ("weight", "norm_scale"), ("norm_bias", "bias"), ()])
def test_only_the_chosen_kinds_decay(kinds):
    model = mixed_model()
    chosen = {kinds} if isinstance(kinds, str) else set(kinds)
    for p in model.parameters():
        nn.init.ones_(p)
        p.grad = torch.zeros_like(p)
    SGDW(decay_groups(model, 0.25, kinds), lr=0.1, weight_decay=0.5).step()  # 0.5 would show a group without its own
    kind_of = parameter_kinds(model)
    for name, p in model.named_parameters():
        assert (p == (0.75 if kind_of[name] in chosen else 1.0)).all(), name


def test_by_default_everything_decays_in_one_group():
    model = mixed_model()
    (group,) = decay_groups(model, 0.1)
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters()]


@pytest.mark.parametrize("check", [check_kinds, lambda kinds: decay_groups(nn.Linear(2, 2), 0.1, kinds)])
@pytest.mark.parametrize("kinds", ["scale", ("weight", "scale")])
def test_unknown_kind_is_refused(check, kinds):
    with pytest.raises(ValueError) as error:
        check(kinds)
    assert str(error.value) == "unknown parameter kind 'scale'; known: weight, bias, norm_scale, norm_bias"


def test_normalized_decay_goes_with_the_root_of_the_number_of_updates():
    assert normalized(0.025, b=100, B=50_000, T=100) == pytest.approx(0.025 / math.sqrt(500 * 100), rel=1e-15)
    assert normalized(0.05, b=128, B=50_000, T=400) == pytest.approx(normalized(0.05, 128, 50_000, 100) / 2, rel=1e-15)
