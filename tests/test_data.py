"""data: file format and canonical order, generated images, splits and augmentation (downloads: test_download.py).

Reading is held against Python's own sort and SHA-256, augmentation against a loop over pixels.
"""

import hashlib
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from decoupled import data, runs

RAW = Path(__file__).parents[1] / "data" / "raw"
SMALL = 20  # images per file in the copies made here


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(data, "BATCH_IMAGES", SMALL)


def make_records(seed=0, files=6):
    """Random records [files, SMALL, 3073]; some share a long beginning, so that the sort must look at later bytes."""
    rng = np.random.default_rng(seed)
    records = rng.integers(0, 256, (files, SMALL, data.RECORD), dtype=np.uint8)
    records[:, :, 0] = rng.integers(0, 10, (files, SMALL))
    records[:, ::2, 1:2000] = 255  # a white sky
    records[:, ::4, 2000:] = 0  # bytes of zero at the end
    records[:, ::4, 2500] = rng.integers(0, 256, (files, SMALL // 4))
    return records


def write(folder, records):
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in zip(data.BATCHES, records, strict=True):
        (folder / name).write_bytes(part.tobytes())
    return folder


# --- reading ------------------------------------------------------------------------------------------------------


def test_read_gives_the_sorted_records(small, tmp_path):
    records = make_records()
    images = data.read(write(tmp_path, records))
    train = sorted(record.tobytes() for record in records[:5].reshape(-1, data.RECORD))
    test = sorted(record.tobytes() for record in records[5])
    for expected, x, y in ((train, images.train_x, images.train_y), (test, images.test_x, images.test_y)):
        assert x.dtype == torch.uint8 and x.shape == (len(expected), 3, 32, 32)
        assert y.dtype == torch.int64 and y.shape == (len(expected),)
        for i, record in enumerate(expected):
            assert y[i] == record[0]
            for channel, row, column in ((0, 0, 0), (0, 3, 7), (1, 31, 0), (2, 16, 31)):
                assert x[i, channel, row, column] == record[1 + 1024 * channel + 32 * row + column]
            assert x[i].numpy().tobytes() == record[1:]
    assert images.fingerprint == hashlib.sha256(b"".join(train + test)).hexdigest()[:16]
    assert images.source == "cifar10"


def test_order_of_the_images_in_the_files_does_not_matter(small, tmp_path):
    records = make_records()
    rng = np.random.default_rng(1)
    other = records.copy()
    other[:5] = rng.permutation(records[:5].reshape(-1, data.RECORD)).reshape(5, SMALL, -1)
    other[5] = rng.permutation(records[5])
    one, two = data.read(write(tmp_path / "a", records)), data.read(write(tmp_path / "b" / data.FOLDER, other).parent)
    assert one.fingerprint == two.fingerprint
    assert all(torch.equal(a, b) for a, b in zip(one[:4], two[:4], strict=True))


@pytest.mark.parametrize("where", [(0, 0, 3072), (5, 3, 100), (2, 7, 0)])
def test_fingerprint_covers_every_file_and_the_labels(small, tmp_path, where):
    records = make_records()
    before = data.read(write(tmp_path, records)).fingerprint
    records[where] = (records[where] + 1) % 10
    assert data.read(write(tmp_path, records)).fingerprint != before


def test_train_and_test_images_do_not_mix_in_the_fingerprint(small, tmp_path):
    records = make_records()
    before = data.read(write(tmp_path, records)).fingerprint
    records[[0, 5], 0] = records[[5, 0], 0]
    assert data.read(write(tmp_path, records)).fingerprint != before


def one_line(error, *parts):
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert part in text


@pytest.mark.faults
def test_missing_file(small, tmp_path):
    (write(tmp_path, make_records()) / "data_batch_4.bin").unlink()
    with pytest.raises(ValueError) as error:
        data.read(tmp_path)
    one_line(error, "data_batch_4.bin is missing", str(tmp_path), "python -m decoupled fetch", "DATA=")


@pytest.mark.faults
@pytest.mark.parametrize("size", [0, 1, SMALL * 3073 - 1, SMALL * 3073 + 1])
def test_wrong_size(small, tmp_path, size):
    path = write(tmp_path, make_records()) / "test_batch.bin"
    path.write_bytes(bytes(size))
    with pytest.raises(ValueError) as error:
        data.read(tmp_path)
    one_line(error, str(path), f"has {size} bytes, expected {SMALL * 3073}")


@pytest.mark.faults
def test_label_above_nine(small, tmp_path):
    records = make_records()
    records[3, 7, 0] = 10
    with pytest.raises(ValueError) as error:
        data.read(write(tmp_path, records))
    one_line(error, "data_batch_4.bin", "label 10")


# --- find ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(small, tmp_path, monkeypatch):
    """A current directory without data, and a fetch that says it has no network."""

    def fetch(folder):
        raise OSError("no network here")

    monkeypatch.setattr(data, "fetch", fetch)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_find_takes_the_folder_given_or_fails(elsewhere):
    write(elsewhere / "mine", make_records())
    assert data.find("mine").source == "cifar10"
    with pytest.raises(ValueError, match="is missing in other"):
        data.find("other")


@pytest.mark.parametrize("place", ["data/raw", f"data/raw/{data.FOLDER}"])
def test_find_takes_data_raw(elsewhere, place):
    write(elsewhere / place, make_records())
    said: list[str] = []
    assert data.find(say=said.append).source == "cifar10"
    assert said == []


@pytest.mark.faults
def test_find_does_not_pass_over_damaged_files(elsewhere):
    (write(elsewhere / "data/raw", make_records()) / "data_batch_1.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="has 0 bytes"):
        data.find()


def test_find_downloads(elsewhere, monkeypatch):
    monkeypatch.setattr(data, "fetch", lambda folder: write(Path(folder), make_records()))
    assert data.find().source == "cifar10"


@pytest.mark.parametrize(("allow", "reason"), [(True, "no network here"), (False, "no CIFAR-10 in data/raw")])
def test_find_says_when_it_generates(elsewhere, allow, reason):
    said: list[str] = []
    images = data.find(allow_download=allow, say=said.append)
    assert images.source == "generated"
    (line,) = said
    assert "\n" not in line and "NOT be about CIFAR-10" in line and reason in line
    with pytest.raises(OSError, match=reason):
        data.find(allow_download=allow, required=True, say=said.append)
    assert len(said) == 1


# --- generated images ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made():
    return data.generated()


def test_generated_images_have_the_sizes_of_cifar10(made):
    for x, y, n in ((made.train_x, made.train_y, 50_000), (made.test_x, made.test_y, 10_000)):
        assert x.dtype == torch.uint8 and x.shape == (n, 3, 32, 32)
        assert y.dtype == torch.int64 and y.bincount().tolist() == [n // 10] * 10
    assert made.source == "generated"


def test_generated_images_are_a_function_of_the_seed(small):
    one, two, other = data.generated(), data.generated(0), data.generated(1)
    assert all(torch.equal(a, b) for a, b in zip(one[:4], two[:4], strict=True))
    assert one.fingerprint == two.fingerprint != other.fingerprint


def test_generated_images_are_all_different(made):
    everything = np.concatenate([made.train_x.flatten(1).numpy(), made.test_x.flatten(1).numpy()])
    assert len({hashlib.blake2b(image, digest_size=16).digest() for image in everything}) == 60_000


def test_generated_classes_can_be_told_apart(made):
    """The nearest of 5,000 training images, by 4x4 block means, has the right class far more often than 1 in 10."""
    positions, _ = data.split(5_000)

    def blocks(x):
        return x.reshape(-1, 3, 8, 4, 8, 4).float().mean((3, 5)).flatten(1)

    test_x, test_y = made.test_x[::20], made.test_y[::20]
    nearest = torch.cdist(blocks(test_x), blocks(made.train_x[positions])).argmin(1)
    assert 0.5 < (made.train_y[positions][nearest] == test_y).float().mean() < 1


# --- split --------------------------------------------------------------------------------------------------------


def test_splits_are_disjoint_nested_and_cover_everything():
    whole, validation = data.split(45_000)
    assert sorted(torch.cat([whole, validation]).tolist()) == list(range(50_000))
    assert len(validation) == data.VALIDATION_IMAGES == runs.VALIDATION_IMAGES
    for size in (1, 4_000, 44_999):
        part, held_out = data.split(size)
        assert torch.equal(part, whole[:size]) and torch.equal(held_out, validation)
    everything, nothing = data.split(50_000)
    assert sorted(everything.tolist()) == list(range(50_000)) and nothing.shape == (0,)
    assert {t.dtype for t in (whole, validation, everything, nothing)} == {torch.int64}


def test_split_is_shuffled():
    """Mean position of the validation images within 5 standard errors of the middle, and no class order left."""
    _, validation = data.split(45_000)
    assert abs(validation.double().mean() - 24_999.5) < 5 * 50_000 / (12 * 5_000) ** 0.5
    labels = torch.arange(50_000) // 5_000  # as the canonical order has them
    assert (labels[validation].bincount() - 500).abs().max() < 5 * (500 * 0.9) ** 0.5


@pytest.mark.parametrize("size", [0, -1, 45_001, 49_999, 50_001])
def test_split_refuses_other_sizes(size):
    with pytest.raises(ValueError, match=f"got {size}"):
        data.split(size)


# --- what a batch is made of --------------------------------------------------------------------------------------


def one_run(n):
    """Index [n, 1]: all images, each once, for one run."""
    return torch.arange(n)[:, None]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-15), (torch.float32, 1e-6)])
def test_pixels_are_normalized_as_numpy_does(dtype, tolerance):
    values = np.arange(3 * 256).reshape(1, 16, 16, 3) % 256
    values[..., 1:] = values[..., :1]  # every value in every channel
    mean, std = np.array([125.3, 123.0, 113.9]), np.array([63.0, 62.1, 66.7])
    expected = ((values - mean) / std).transpose(0, 3, 1, 2)
    x = data.take(torch.from_numpy(values.astype(np.uint8)), one_run(1), None, data.scale(dtype))
    assert x.dtype == dtype and x.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(x.numpy(), expected, rtol=tolerance, atol=tolerance / 8)


PLAIN = torch.tensor([[0.0] * 3, [1.0] * 3], dtype=torch.float64)  # leaves pixels as they are; 0 is then what surrounds


def drawn(n, seed):
    """Draws for flip+crop with their two tensors."""
    draws = data.draw(n, "flip+crop", torch.Generator().manual_seed(seed))
    assert draws is not None and draws.offsets is not None
    return draws, draws.flip, draws.offsets


def transcription(x, flip, offsets):
    """Image by image and pixel by pixel: mirror, surround with 4 zeros, cut out the original size; x [n, H, W, 3]."""
    n, height, width, _ = x.shape
    out = np.zeros((n, 3, height, width))
    for i, row, column in itertools.product(range(n), range(height), range(width)):
        source_row = row + offsets[i][0] - 4
        source_column = column + offsets[i][1] - 4
        if 0 <= source_row < height and 0 <= source_column < width:
            if flip[i]:
                source_column = width - 1 - source_column
            out[i, :, row, column] = x[i, source_row, source_column]
    return out


def noise(n, size):
    """Images uint8 [n, H, W, 3] without a 0 in them."""
    return torch.randint(1, 256, (n, *size, 3), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)


def of_one_run(draws):
    return data.Draws(draws.flip[:, None], None if draws.offsets is None else draws.offsets[:, None])


@pytest.mark.parametrize("size", [(32, 32), (5, 7)])
@pytest.mark.parametrize("kind", ["flip", "flip+crop"])
def test_augmentation_moves_pixels_as_the_loop_does(kind, size):
    draws = data.draw(40, kind, torch.Generator().manual_seed(0))
    assert draws is not None
    x = noise(40, size)
    before = x.clone()
    y = data.take(x, one_run(40), of_one_run(draws), PLAIN)
    offsets = np.full((40, 2), 4) if draws.offsets is None else draws.offsets.numpy()
    np.testing.assert_array_equal(y.numpy(), transcription(x.numpy(), draws.flip.numpy(), offsets))
    assert torch.equal(x, before)


def test_augmentation_at_every_offset():
    places = list(itertools.product(range(9), range(9), [False, True]))
    flip, offsets = torch.tensor([f for _, _, f in places]), torch.tensor([[r, c] for r, c, _ in places])
    x = noise(len(places), (6, 6))
    y = data.take(x, one_run(len(places)), of_one_run(data.Draws(flip, offsets)), PLAIN)
    np.testing.assert_array_equal(y.numpy(), transcription(x.numpy(), flip.numpy(), offsets.numpy()))


def test_what_surrounds_an_image_is_the_mean_colour():
    offsets = torch.zeros(1, 1, 2, dtype=torch.int64)  # four rows and columns of surroundings
    y = data.take(noise(1, (8, 8)), one_run(1), data.Draws(torch.tensor([[False]]), offsets), data.scale(torch.float32))
    assert (y[..., :4, :] == 0).all() and (y[..., :, :4] == 0).all() and (y[..., 4:, 4:] != 0).any()


def test_every_run_gets_its_own_images_and_draws():
    """Three runs at once: channels 3r to 3r+2 are what run r would get alone."""
    x = noise(50, (8, 8))
    index = torch.stack([torch.randperm(50, generator=torch.Generator().manual_seed(r))[:20] for r in range(3)], 1)
    draws = [drawn(20, seed)[0] for seed in range(3)]
    offsets = torch.stack([d.offsets for d in draws if d.offsets is not None], 1)
    together = data.take(x, index, data.Draws(torch.stack([d.flip for d in draws], 1), offsets), PLAIN)
    assert together.shape == (20, 9, 8, 8) and together.is_contiguous(memory_format=torch.channels_last)
    for r, mine in enumerate(draws):
        alone = data.take(x, index[:, r : r + 1], of_one_run(mine), PLAIN)
        assert torch.equal(together[:, 3 * r : 3 * r + 3], alone)
        expected = transcription(x[index[:, r]].numpy(), mine.flip.numpy(), offsets[:, r].numpy())
        np.testing.assert_array_equal(alone.numpy(), expected)


def test_no_augmentation():
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    assert data.draw(10, "none", generator) is None
    assert torch.equal(generator.get_state(), state)
    x = noise(2, (4, 4))
    assert torch.equal(data.take(x, torch.tensor([[1], [0]]), None, PLAIN), x.flip(0).permute(0, 3, 1, 2).double())


def test_unknown_augmentation():
    with pytest.raises(ValueError, match="unknown augment 'crop'; known: none, flip, flip\\+crop"):
        data.draw(10, "crop", torch.Generator())


def test_draws_have_their_distribution():
    """Each count within 5 standard deviations of its mean; flips and offsets independent of each other."""
    n = 100_000
    _, flip, offsets = drawn(n, 0)
    assert flip.dtype == torch.bool and flip.shape == (n,)
    assert offsets.dtype == torch.int64 and offsets.shape == (n, 2)
    assert abs(int(flip.sum()) - n / 2) < 5 * (n / 4) ** 0.5
    assert offsets.min() == 0 and offsets.max() == 8
    cells = (flip * 81 + offsets[:, 0] * 9 + offsets[:, 1]).bincount(minlength=162)
    assert (cells - n / 162).abs().max() < 5 * (n / 162) ** 0.5


def test_draws_come_from_the_generator_alone():
    (_, flip, offsets), (_, same_flip, same_offsets), (_, other_flip, other_offsets) = map(drawn, [50] * 3, [3, 3, 4])
    assert torch.equal(flip, same_flip) and torch.equal(offsets, same_offsets)
    assert not torch.equal(flip, other_flip) and not torch.equal(offsets, other_offsets)
    flip_only = data.draw(50, "flip", torch.Generator().manual_seed(3))
    assert flip_only is not None and torch.equal(flip_only.flip, flip) and flip_only.offsets is None


# --- the real images ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real():
    if not (RAW / data.FOLDER / data.BATCHES[0]).exists():
        pytest.skip("CIFAR-10 is not in data/raw")
    return data.read(RAW)


def test_real_images_are_complete(real):
    for x, y, n in ((real.train_x, real.train_y, 50_000), (real.test_x, real.test_y, 10_000)):
        assert x.shape == (n, 3, 32, 32) and y.bincount().tolist() == [n // 10] * 10
        assert y.diff().min() == 0  # canonical order: labels first


def test_real_images_have_the_published_means(real):
    """Mean and standard deviation per channel, as in the released code, to half a unit of a pixel."""
    counts = torch.stack([real.train_x[:, c].flatten().bincount(minlength=256) for c in range(3)]).double()
    values = torch.arange(256, dtype=torch.float64)
    mean = (counts * values).sum(1) / counts.sum(1)
    std = ((counts * values**2).sum(1) / counts.sum(1) - mean**2).sqrt()
    assert (mean - torch.tensor([125.3, 123.0, 113.9])).abs().max() < 0.5
    assert (std - torch.tensor([63.0, 62.1, 66.7])).abs().max() < 0.5


def test_order_of_real_records_is_that_of_python(real):
    pixels = real.test_x.flatten(1).numpy()
    records = [bytes([label]) + pixels[i].tobytes() for i, label in enumerate(real.test_y.tolist())]
    assert records == sorted(records) and len(set(records)) == 10_000
