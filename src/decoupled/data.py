"""CIFAR-10 as tensors: read, download, split, normalize and augment it; generated images stand in where it is missing.

The order of the images is canonical: each split is sorted by the bytes of its records (label, then pixels). Every
random choice of a run points at images by their position, so a copy of the same images in another order would train
to other numbers although nothing about the data differs. Sorted, the official archive and any re-ordered copy give
the same tensors, the same fingerprint and the same bits in training.
"""

import contextlib
import hashlib
import os
import shutil
import sys
import tarfile
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FOLDER = "cifar-10-batches-bin"
BATCHES = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")  # the last one is the test set
BATCH_IMAGES = 10_000  # records per file
RECORD = 1 + 3 * 32 * 32  # bytes: the label; then the red, the green and the blue plane, row by row
RAW = Path("data/raw")

ARCHIVE = "cifar-10-binary.tar.gz"
SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"  # of the archive
ARCHIVE_BYTES = 170_052_171
MIRRORS = (
    f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}",
    f"https://storage.googleapis.com/s4tf-hosted-binaries/datasets/CIFAR10/{ARCHIVE}",
    f"https://mindspore-website.obs.cn-north-4.myhuaweicloud.com/notebook/datasets/{ARCHIVE}",
)
BY_HAND = "put the official binary files in data/raw, or name their folder with DATA="
HOW = f"run `python -m decoupled fetch`, or {BY_HAND}"

MEAN = (125.3, 123.0, 113.9)  # per channel, in units of a pixel (released code)
STD = (63.0, 62.1, 66.7)
VALIDATION_IMAGES = 5_000
SPLIT_SEED = 20_190_506  # of the one permutation that every run shares
AUGMENTATIONS = ("none", "flip", "flip+crop")
PAD = 4  # zero pixels around an image before it is cropped


class Images(NamedTuple):
    """Both splits in canonical order. Pixels are uint8 [N, 3, 32, 32], labels int64 [N] from 0 to 9."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    source: str  # cifar10 | generated
    fingerprint: str  # first 16 hexadecimal digits of the SHA-256 of the sorted records, training set first


class Draws(NamedTuple):
    """How images are augmented; the axes are those of the images: [N], or [B, R] in a batch of R runs."""

    flip: Tensor  # bool [...]
    offsets: Tensor | None  # int64 [..., 2] in 0..8: first row and column of the crop; None if there is no crop


# --- from files to tensors ----------------------------------------------------------------------------------------


def read(folder: str | Path) -> Images:
    """CIFAR-10 from the official binary files, in `folder` or in the cifar-10-batches-bin inside it.

    Checksums of the files are not asked for, so that a re-ordered copy is welcome; the fingerprint says which images
    they were. ValueError for a missing file, a file of the wrong size and a label above 9.
    """
    place = Path(folder)
    if (place / FOLDER).is_dir():
        place /= FOLDER
    _check_sizes(place)
    batches = np.empty((len(BATCHES), BATCH_IMAGES, RECORD), np.uint8)
    for name, records in zip(BATCHES, batches, strict=True):
        with open(place / name, "rb") as file:
            file.readinto(records.data)
        if (label := int(records[:, 0].max())) >= len(CLASSES):
            raise ValueError(f"{place / name} has the label {label}, labels end at 9: damaged or not CIFAR-10; {HOW}")
    return _images(batches[:-1].reshape(-1, RECORD), batches[-1], "cifar10")


def _check_sizes(folder: Path) -> None:
    expected = BATCH_IMAGES * RECORD
    for path in (folder / name for name in BATCHES):
        if not path.is_file():
            raise ValueError(f"{path.name} is missing in {folder}; {HOW}")
        if (size := path.stat().st_size) != expected:
            raise ValueError(f"{path} has {size} bytes, expected {expected}: it is truncated or not CIFAR-10; {HOW}")


def _images(train: np.ndarray, test: np.ndarray, source: str) -> Images:
    """Tensors and fingerprint of two arrays of records."""
    digest = hashlib.sha256()
    tensors = []
    for records in (train, test):
        order = np.argsort(records.view(f"S{RECORD}")[:, 0])
        pixels = np.empty((len(records), RECORD - 1), np.uint8)
        for i in range(0, len(order), 1000):  # in parts that fit in the cache
            part = records[order[i : i + 1000]]
            digest.update(part.data)
            pixels[i : i + 1000] = part[:, 1:]
        labels = records[order, 0].astype(np.int64)
        tensors.append((torch.from_numpy(pixels.reshape(-1, 3, 32, 32)), torch.from_numpy(labels)))
    (train_x, train_y), (test_x, test_y) = tensors
    return Images(train_x, train_y, test_x, test_y, source, digest.hexdigest()[:16])


def find(
    folder: str | Path | None = None,
    allow_download: bool = True,
    required: bool = False,
    say: Callable[[str], object] = print,
) -> Images:
    """The images to work with: those in `folder`; else those in data/raw, downloaded if need be; else generated ones.

    Files that are there but unusable are always an error of `read`. Where there are none, generated images come with
    one line through `say`; if `required`, that is an OSError instead.
    """
    if folder is not None:
        return read(folder)
    if any((place / name).exists() for place in (RAW, RAW / FOLDER) for name in BATCHES):
        return read(RAW)
    reason = f"no CIFAR-10 in {RAW}; {HOW}"
    if allow_download:
        try:
            return read(fetch(RAW))
        except OSError as error:
            reason = str(error)
    if required:
        raise OSError(reason)
    say(f"Going on with GENERATED images; the results will NOT be about CIFAR-10 ({reason})")
    return generated()


# --- download -----------------------------------------------------------------------------------------------------


def fetch(
    folder: str | Path,
    mirrors: Sequence[str] = MIRRORS,
    budget_s: float = 600,
    connect_s: float = 10,
    progress: bool = True,
    sha256: str = SHA256,
) -> Path:
    """Downloads CIFAR-10 into `folder` and returns the cifar-10-batches-bin there; does nothing if it is complete.

    Mirrors are tried in order, the address in the environment variable DATA_URL before them. `connect_s`: seconds a
    server may be silent; `budget_s`: seconds for everything, of which each mirror but the last gets half of what is
    left. The files appear all at once or not at all. OSError, with the reason for each host, if no mirror serves.
    """
    import fcntl  # POSIX only, like make

    home = Path(folder)
    final = home / FOLDER
    if final.exists() and any(final.iterdir()):
        try:
            _check_sizes(final)
        except ValueError as error:
            raise OSError(f"{final} is in the way, move it away before a download: {error}") from None
        return final
    home.mkdir(parents=True, exist_ok=True)
    for lock in home.glob(".fetch-*/lock"):  # left by a fetch that was killed; one that lives holds its lock
        with contextlib.suppress(OSError), open(lock, "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent)
    end = time.monotonic() + budget_s
    sources = [(urlsplit(address).hostname, address) for address in mirrors]
    if own := os.environ.get("DATA_URL"):
        sources.insert(0, ("DATA_URL", own))
    reasons = []
    for i, (name, address) in enumerate(sources, 1):
        seconds = (end - time.monotonic()) / (1 if i == len(sources) else 2)
        place = tempfile.TemporaryDirectory(prefix=".fetch-", dir=home, ignore_cleanup_errors=True)
        with place as temporary, open(Path(temporary, "lock"), "w") as file:
            with contextlib.suppress(OSError):  # a drive without locks: then nothing is ever taken for left
                fcntl.flock(file, fcntl.LOCK_EX)
            try:
                archive = _download(address, temporary, sha256, seconds, connect_s, progress and sys.stderr.isatty())
                _unpack(archive, unpacked := Path(temporary, FOLDER))
                _check_sizes(unpacked)
                with contextlib.suppress(OSError):  # another process may have been first
                    unpacked.rename(final)
                _check_sizes(final)
                return final
            except (OSError, ValueError, EOFError, tarfile.TarError, zlib.error) as error:
                reasons.append(f"{name} ({_reason(error)})")
    raise OSError(f"CIFAR-10 could not be downloaded from {', '.join(reasons)}; {BY_HAND}")


def _reason(error: BaseException) -> str:
    """Why a mirror failed, in a few words: what lies under the wrappers of the network libraries."""
    while error.__context__ is not None:
        error = error.__context__
    text = str(error) or type(error).__name__
    if "does not match the known hash" in text:
        return "what it sent has another checksum than the archive"
    return text.splitlines()[0].split(" for url")[0].removesuffix(f"; {HOW}")


def _check_protocol(address: str, asked: str) -> None:
    """ValueError unless `address`, to which `asked` led, is https; or both are http on this machine, as in tests."""
    parts = [urlsplit(place) for place in (address, asked)]
    if parts[0].scheme != "https" and {(x.scheme, x.hostname) for x in parts} != {("http", "127.0.0.1")}:
        raise ValueError("not an https address")


def _download(address: str, folder: str, sha256: str, seconds: float, connect_s: float, show: bool) -> Path:
    """The verified archive in `folder`, or an exception when `seconds` are over or more comes than the archive has.

    The transfer has a thread of its own: the time-outs of a socket start anew with every byte, so they end neither a
    transfer that drips nor the look-up of a name.
    """
    import pooch
    from tqdm import tqdm

    _check_protocol(address, address)
    stopped = threading.Event()
    responses: list[Any] = []
    outcome: list[str | Exception] = []

    def on_response(response: Any, **_: object) -> None:
        responses.append(response)
        _check_protocol(urljoin(response.url, response.headers.get("location", "")), address)
        if stopped.is_set():
            raise TimeoutError

    def work() -> None:
        try:
            outcome.append(pooch.retrieve(address, f"sha256:{sha256}", ARCHIVE, folder, downloader=downloader))
        except Exception as error:
            outcome.append(error)
        for response in responses:
            response.close()

    pooch.get_logger().setLevel("WARNING")  # its notice of each download is not for a notebook's stderr
    with tqdm(total=1, unit="B", unit_scale=True, desc=ARCHIVE, leave=False, disable=not show) as bar:
        downloader = pooch.HTTPDownloader(
            progressbar=bar, chunk_size=2**16, timeout=(connect_s, connect_s), hooks={"response": on_response},
            headers={"Accept-Encoding": "identity"},  # else a server that takes .gz for an encoding has it unpacked
        )  # fmt: skip
        thread = threading.Thread(target=work, name="download", daemon=True)
        thread.start()
        end, too_much = time.monotonic() + seconds, False
        try:
            while thread.is_alive() and not too_much and (left := end - time.monotonic()) > 0:
                thread.join(min(left, 0.2))
                too_much = any(response.raw.tell() > ARCHIVE_BYTES for response in responses)
        finally:
            stopped.set()
            for response in responses:
                with contextlib.suppress(OSError, ValueError, RuntimeError):  # it has ended already
                    response.raw.shutdown()  # wakes the thread if it waits for bytes
    if too_much:
        raise ValueError("it sends more than the archive has")
    result = outcome[0] if outcome else TimeoutError(f"not finished within {max(seconds, 0):.0f} s")
    if isinstance(result, Exception):
        raise result
    return Path(result)


def _unpack(archive: Path, folder: Path) -> None:
    """Writes the known plain files of the archive into `folder`, and nothing else whatever the archive holds."""
    folder.mkdir()
    wanted = {f"{FOLDER}/{name}": name for name in (*BATCHES, "batches.meta.txt")}
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            if (name := wanted.pop(member.name, None)) is None:
                continue
            source = tar.extractfile(member) if member.isreg() else None
            if source is None or member.size > BATCH_IMAGES * RECORD:
                raise ValueError(f"{member.name} in the archive is not a file of CIFAR-10")
            with source, open(folder / name, "wb") as out:
                shutil.copyfileobj(source, out)
    if wanted:
        raise ValueError(f"the archive lacks {', '.join(sorted(wanted.values()))}")


# --- generated images ---------------------------------------------------------------------------------------------

TEMPLATES = 4  # smooth colour patterns of each class
DISTRACTORS = 64  # patterns that belong to no class


def generated(seed: int = 0) -> Images:
    """Images of ten made-up classes in the sizes of CIFAR-10, equal numbers of each class; the same on any machine.

    An image is one of the patterns of its class plus a pattern that means nothing, each shifted by 0 to 8 pixels,
    mirrored or not and with a contrast of its own, plus uniform noise. All arithmetic is on integers and only the raw
    bits of PCG64 are used, whose stream NumPy guarantees.
    """
    bits = np.random.PCG64(seed)

    def below(bound: int, n: int) -> np.ndarray:  # int64 [n] in 0..bound-1
        return ((bits.random_raw(n) >> np.uint64(33)) % np.uint64(bound)).astype(np.int64)

    patterns = _patterns(below(256, (len(CLASSES) * TEMPLATES + DISTRACTORS) * 3 * 36).reshape(-1, 3, 6, 6) - 128)

    def views(which: np.ndarray, low: int, high: int) -> np.ndarray:  # contrast in low..high-1, in 64ths
        n = len(which)
        contrast = (low + below(high - low, n)).astype(np.int16)
        return patterns[which, below(2, n), below(9, n), below(9, n)] * contrast[:, None, None, None]

    splits = []
    for images in (BATCH_IMAGES * (len(BATCHES) - 1), BATCH_IMAGES):
        records = np.empty((images, RECORD), np.uint8)
        records[:, 0] = np.arange(images) % len(CLASSES)
        for part in np.array_split(records, max(images // 500, 1)):  # views of parts that fit in the cache
            n = len(part)
            x = views(part[:, 0] * np.int64(TEMPLATES) + below(TEMPLATES, n), 24, 64)
            x += views(len(CLASSES) * TEMPLATES + below(DISTRACTORS, n), 16, 44)
            noise = bits.random_raw(n * (RECORD - 1) // 8).astype("<u8", copy=False).view(np.uint8).reshape(x.shape)
            x = x // 64 + noise // 2 + 64  # noise of 0..127 around the middle grey
            part[:, 1:] = np.clip(x, 0, 255).reshape(n, -1)
        splits.append(records)
    return _images(splits[0], splits[1], "generated")


def _patterns(nodes: np.ndarray) -> np.ndarray:
    """Nodes [M, 3, 6, 6] in -128..127, interpolated to 40x40 -> every view, int16 [M, 2 mirrored, 9, 9, 3, 32, 32]."""
    weight = np.arange(8)
    for axis in (2, 3):
        a = np.moveaxis(nodes, axis, -1)
        between = (a[..., :-1, None] * (8 - weight) + a[..., 1:, None] * weight) // 8
        nodes = np.moveaxis(between.reshape(*a.shape[:-1], -1), -1, axis)
    both = np.stack([nodes, nodes[..., ::-1]], 1).astype(np.int16)  # [M, 2, 3, 40, 40]
    return sliding_window_view(both, (32, 32), (3, 4)).transpose(0, 1, 3, 4, 2, 5, 6)


# --- what a run takes of them -------------------------------------------------------------------------------------


def split(train_size: int) -> tuple[Tensor, Tensor]:
    """Positions in the training set: (training int64 [train_size], validation int64 [5000], or [0] at 50,000).

    One fixed permutation serves all sizes: its end is the validation set, its beginning the training set, so that a
    smaller training set lies within a larger one.
    """
    total = BATCH_IMAGES * (len(BATCHES) - 1)
    if not (1 <= train_size <= total - VALIDATION_IMAGES or train_size == total):
        raise ValueError(f"train_size must be 1..{total - VALIDATION_IMAGES} or {total}, got {train_size}")
    order = torch.from_numpy(np.argsort(np.random.PCG64(SPLIT_SEED).random_raw(total), kind="stable"))
    held_out = 0 if train_size == total else VALIDATION_IMAGES
    return order[:train_size].clone(), order[total - held_out :].clone()


def draw(n: int, kind: str, generator: torch.Generator) -> Draws | None:
    """Random choices for n images from a CPU generator: mirrored with probability 1/2, crop offsets uniform on 0..8.

    `kind` is none (nothing is drawn; None), flip or flip+crop; ValueError for another.
    """
    if kind not in AUGMENTATIONS:
        raise ValueError(f"unknown augment {kind!r}; known: {', '.join(AUGMENTATIONS)}")
    if kind == "none":
        return None
    flip = torch.rand(n, generator=generator, dtype=torch.float32) < 0.5
    return Draws(flip, torch.randint(2 * PAD + 1, (n, 2), generator=generator) if kind == "flip+crop" else None)


def scale(dtype: torch.dtype, device: str = "cpu") -> Tensor:
    """MEAN and STD as a tensor [2, 3] for `take`: made once, since a captured step can fetch nothing from the CPU."""
    return torch.tensor((MEAN, STD), dtype=dtype, device=device)


def take(images: Tensor, index: Tensor, draws: Draws | None, scale: Tensor) -> Tensor:
    """A batch for R runs: images mirrored, surrounded by 4 pixels of the mean colour and cropped, as drawn.

    images: uint8 [N, H, W, 3]; index: int64 [B, R], the image that each run gets; draws: flip [B, R] and offsets
    [B, R, 2] or None, or None to change nothing; scale: mean and deviation [2, 3]. Returns (pixel - mean) / deviation
    as [B, R*3, H, W] in channels-last order, of the dtype of `scale`. One gather of whole pixels, whatever is drawn.
    """
    (_, H, W, C), (B, R) = images.shape, index.shape
    rows = torch.arange(H, device=images.device).expand(B, R, H)
    columns = torch.arange(W, device=images.device).expand(B, R, W)
    outside = None
    if draws is not None and draws.offsets is not None:
        rows, columns = rows + (draws.offsets[..., :1] - PAD), columns + (draws.offsets[..., 1:] - PAD)
        outside = ((rows < 0) | (rows >= H))[..., None] | ((columns < 0) | (columns >= W))[..., None, :]
        rows, columns = rows.clamp(0, H - 1), columns.clamp(0, W - 1)
    if draws is not None:
        columns = torch.where(draws.flip[..., None], W - 1 - columns, columns)
    at = ((index[..., None] * H + rows) * W)[..., None] + columns[..., None, :]  # [B, R, H, W]
    pixels = images.reshape(-1, C).index_select(0, at.permute(0, 2, 3, 1).reshape(-1)).reshape(B, H, W, R, C)
    x = pixels.to(scale.dtype).sub_(scale[0]).div_(scale[1])
    if outside is not None:
        x.masked_fill_(outside.permute(0, 2, 3, 1)[..., None], 0.0)
    return x.reshape(B, H, W, R * C).permute(0, 3, 1, 2)
