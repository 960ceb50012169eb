"""runs: the identity of a run: its fields, what they refuse, and the key that stands for them."""

import dataclasses
import hashlib
import io
import json
import math

import pandas as pd
import pytest

from decoupled import data, optim, runs
from decoupled.runs import RunConfig

BASE = RunConfig("adamw", 1e-3, 2.5e-4)
FIELDS = [field.name for field in dataclasses.fields(RunConfig)]

# another valid value of every field; a new field without a line here fails the test below
OTHER: dict = {
    "algorithm": "adam",
    "alpha": 2e-3,
    "decay": 5e-4,
    "schedule": "restarts(10, 2)",
    "decay_unit": "normalized",
    "decayed": "weight",
    "beta1": 0.8,
    "beta2": 0.99,
    "eps": 1e-6,
    "network": "shakeshake26",
    "width": 16,
    "dataset": "generated",
    "train_size": 50_000,
    "augment": "flip",
    "epochs": 99,
    "batch_size": 64,
    "evaluations": 5,
    "precision": "bfloat16",
    "snapshots": "5,15",
    "seed": 1,
}

# --- identity -----------------------------------------------------------------------------------------------------


def test_every_field_changes_the_key():
    assert set(OTHER) == set(FIELDS)
    keys = {BASE.key()}
    for name, value in OTHER.items():
        keys.add(dataclasses.replace(BASE, **{name: value}).key())
    assert len(keys) == 1 + len(FIELDS)


def test_the_semantics_version_changes_the_key(monkeypatch):
    before = BASE.key()
    monkeypatch.setattr(runs, "SEMANTICS", runs.SEMANTICS + 1)
    assert BASE.key() != before


def test_the_key_is_the_hash_of_the_sorted_fields_written_out_by_hand():
    # published results carry these keys: whoever changes how they are made must raise SEMANTICS and train anew
    text = (
        '{"algorithm": "adamw", "alpha": 0.001, "augment": "flip+crop", "batch_size": 128, "beta1": 0.9, '
        '"beta2": 0.999, "dataset": "cifar10", "decay": 0.00025, "decay_unit": "raw", '
        '"decayed": "weight+bias+norm_scale+norm_bias", "epochs": 100, "eps": 1e-08, "evaluations": 1, '
        '"network": "cnn", "precision": "float32", "schedule": "cosine", "seed": 0, "semantics": 1, '
        '"train_size": 45000, "width": 8}'
    )
    assert BASE.key() == hashlib.sha256(text.encode()).hexdigest()[:16]


def test_fields_younger_than_published_results_count_only_where_they_differ_from_what_was_meant_then():
    assert {("snapshots", "")} == runs.ADDED
    for name, value in runs.ADDED:
        assert getattr(BASE, name) == value
        assert dataclasses.replace(BASE, **{name: OTHER[name]}).key() != BASE.key()


def test_snapshots_are_epochs():
    assert BASE.snapshot_epochs() == []
    assert dataclasses.replace(BASE, snapshots="1,15,100").snapshot_epochs() == [1, 15, 100]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (RunConfig("sgd", 1, 0), RunConfig("sgd", 1.0, 0.0)),
        (RunConfig("sgd", 1.0, 0.0, beta1=0), RunConfig("sgd", 1.0, 0.0, beta1=0.0)),
        (RunConfig("sgd", 1.0, -0.0), RunConfig("sgd", 1.0, 0.0)),
    ],
)
def test_equal_runs_have_one_key(one, other):
    assert one == other and hash(one) == hash(other)
    assert one.key() == other.key()


def test_the_key_is_the_same_whatever_the_order_of_the_fields():
    backwards = dict(reversed(BASE.to_dict().items()))
    assert RunConfig.from_dict(backwards).key() == BASE.key()


def test_a_run_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        BASE.alpha = 2.0  # type: ignore[misc]


def plain(row):
    """A row of a data frame with Python's own types, as the fields of a run have them."""
    return {name: value.item() if hasattr(value, "item") else value for name, value in row.items()}


def awkward_runs():
    """Runs whose numbers have no short decimal form, every other field away from its default in one of them."""
    some = [BASE, RunConfig("sgd", 1 / 3, 1e-3 / 7, beta1=math.nextafter(0.9, 1)), RunConfig("sgdw", 5e-324, 1e300)]
    return [*some, *(dataclasses.replace(BASE, **{name: value}) for name, value in OTHER.items())]


def test_round_trip_through_a_dict():
    for run in awkward_runs():
        fields = run.to_dict()
        assert list(fields) == FIELDS
        again = RunConfig.from_dict(dict(fields))
        assert again == run and again.key() == run.key()
        assert RunConfig.from_dict(json.loads(json.dumps(fields))).key() == run.key()


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_round_trip_through_a_table(form):
    awkward = awkward_runs()
    frame = pd.DataFrame([run.to_dict() for run in awkward])
    if form == "csv":
        text = {name: str for name, value in BASE.to_dict().items() if isinstance(value, str)}
        again = pd.read_csv(io.StringIO(frame.to_csv(index=False)), dtype=text, keep_default_na=False)
    else:
        file = io.BytesIO()
        frame.to_parquet(file, index=False)
        again = pd.read_parquet(file)
    back = [RunConfig.from_dict(plain(row)) for row in again.to_dict("records")]
    assert back == awkward
    assert [run.key() for run in back] == [run.key() for run in awkward]


def test_unknown_and_missing_fields_are_named():
    fields = BASE.to_dict()
    with pytest.raises(ValueError, match=r"^unknown field\(s\): colour, momentum$"):
        RunConfig.from_dict(fields | {"momentum": 0.9, "colour": "red"})
    with pytest.raises(ValueError, match=r"^unknown field\(s\): 3, None, a\\nb$"):
        RunConfig.from_dict({**fields, None: 1, 3: 1, "a\nb": 1})
    del fields["alpha"], fields["seed"]
    with pytest.raises(ValueError, match=r"^missing field\(s\): alpha, seed$"):
        RunConfig.from_dict(fields)


BAD = [
    # types
    ({"alpha": "0.1"}, "alpha must be float, got '0.1'"),
    ({"alpha": 10**400}, "alpha must be float, got 1000"),
    ({"alpha": None}, "alpha must be float, got None"),
    ({"alpha": True}, "alpha must be float, got True"),
    ({"epochs": 10.0}, "epochs must be int, got 10.0"),
    ({"seed": True}, "seed must be int, got True"),
    ({"network": 5}, "network must be str, got 5"),
    # names
    ({"algorithm": "rmsprop"}, "unknown algorithm 'rmsprop'; known: sgd, sgdw, adam, adamw"),
    ({"decay_unit": "percent"}, "unknown decay_unit 'percent'; known: raw, normalized"),
    ({"network": "vgg"}, "unknown network 'vgg'; known: cnn, shakeshake26"),
    ({"dataset": "mnist"}, "unknown dataset 'mnist'; known: cifar10, generated"),
    ({"augment": "crop"}, "unknown augment 'crop'; known: none, flip, flip+crop"),
    ({"precision": "float8"}, "unknown precision 'float8'; known: float64, float32, bfloat16, float16"),
    ({"decayed": "kernel"}, "unknown decayed 'kernel'; known: weight, bias, norm_scale, norm_bias"),
    ({"decayed": ""}, "unknown decayed ''"),
    ({"decayed": "bias+weight"}, "decayed must name each kind once, in the order weight+bias+norm_scale+norm_bias"),
    ({"decayed": "weight+weight"}, "decayed must name each kind once"),
    # ranges
    *(
        ({name: value}, f"{name} must be a finite number >= 0, got {value!r}")
        for name in ("alpha", "decay", "eps")
        for value in (-1e-9, math.inf, math.nan)
    ),
    *(
        ({name: value}, f"{name} must be in [0, 1), got {value!r}")
        for name in ("beta1", "beta2")
        for value in (-0.1, 1.0, math.nan)
    ),
    *(
        ({name: value}, f"{name} must be a whole number >= 1, got {value!r}")
        for name in ("width", "epochs", "batch_size", "evaluations")
        for value in (0, -1, 2**31)
    ),
    ({"seed": -1}, "seed must be a whole number in [0, 2^31), got -1"),
    ({"seed": 2**31}, "seed must be a whole number in [0, 2^31), got 2147483648"),
    # what does not go together
    ({"algorithm": "sgd", "beta2": 0.99}, "sgd has no beta2 and no eps; leave them at their defaults"),
    ({"algorithm": "sgdw", "eps": 1e-6}, "sgdw has no beta2 and no eps"),
    ({"algorithm": "sgdw_algorithm1", "eps": 1e-6}, "sgdw_algorithm1 has no beta2 and no eps"),
    ({"network": "shakeshake26", "width": 15}, "width of shakeshake26 must be even, got 15"),
    ({"epochs": 4, "evaluations": 5}, "evaluations must be at most epochs (4), got 5"),
    *(({"train_size": n}, f"train_size must be 1..45000 or 50000, got {n}") for n in (0, 45_001, 49_999, 50_001)),
    *(
        ({"epochs": 9, "snapshots": text}, f"snapshots must be rising epochs in 1..9, such as 5,15: {text!r}")
        for text in ("0", "10", "3,2", "3,3", "3,", ",", "a", "3 ,4", "03", "-1", "1.0", "٣", "1" * 5000)
    ),
    ({"schedule": "triangle"}, "unknown schedule 'triangle'; known: fixed"),
    ({"schedule": "step(2, 30)"}, "schedule 'step(2, 30)': a factor above 1"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[str(change)[:60] for change, _ in BAD])
def test_a_bad_field_is_one_clear_line(change, message):
    with pytest.raises(ValueError) as error:
        RunConfig.from_dict(BASE.to_dict() | change)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"alpha": 0.0, "decay": 0.0, "eps": 0.0, "beta1": 0.0, "beta2": 0.0},
        {"epochs": 5, "evaluations": 5, "batch_size": 100_000, "train_size": 1, "width": 1, "seed": 2**31 - 1},
    ],
)
def test_the_ends_of_the_ranges_are_allowed(change):
    assert RunConfig.from_dict(BASE.to_dict() | change).key() != BASE.key()


@pytest.mark.parametrize(
    ("train_size", "batch_size", "steps"),
    [(50_000, 128, 391), (45_000, 128, 352), (128, 128, 1), (1, 128, 1), (9, 4, 3)],
)
def test_the_last_smaller_batch_counts(train_size, batch_size, steps):
    run = dataclasses.replace(BASE, train_size=train_size, batch_size=batch_size, epochs=7)
    assert run.steps_per_epoch == steps and run.steps == 7 * steps


def test_shape_is_everything_but_what_a_pack_holds_per_run():
    per_run = {"alpha", "decay", "schedule", "decay_unit", "decayed", "seed"}
    for name, value in OTHER.items():
        same = dataclasses.replace(BASE, **{name: value}).shape() == BASE.shape()
        assert same == (name in per_run), name


def test_names_and_numbers_that_two_rooms_know_agree():
    assert tuple(optim.RULES) == runs.ALGORITHMS
    assert tuple(runs.KINDS.split("+")) == optim.KINDS
    assert runs.VALIDATION_IMAGES == data.VALIDATION_IMAGES
    assert data.BATCH_IMAGES * (len(data.BATCHES) - 1) == runs.TRAIN_IMAGES
