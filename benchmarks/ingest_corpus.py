"""Generated photographs for `benchmarks.ingest`: JPEGs of 256 to 512 pixels with captions, in tars, and prepared by us.

FOLDER/shards/00000.tar ...     members 000000.jpg, 000000.txt, ...: what everybody reads
FOLDER/indexed, FOLDER/copied   our two ways of preparing them
"""

import io
import os
import tarfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.dataset.prepared import Prepared
from pipelines.prepare.config import PrepareSettings
from pipelines.prepare.prepare import prepare
from pipelines.program import cluster
from pipelines.program.display import Display
from pipelines.program.settings import load

SHARD_ROWS = 500
SIDES = (256, 512)  # pixels, drawn for width and height
QUALITY = 90
WAYS = {"indexed": "index", "copied": "copy"}
_FIELDS, _FIELD_SIDE = 48, 1024
_FALLOFF = 1.3  # of the amplitude with frequency, as in photographs; it makes files of some 60 kB
_WORDS = (
    "a",
    "the",
    "small",
    "old",
    "bright",
    "photo",
    "dog",
    "cat",
    "boat",
    "street",
    "house",
    "near",
    "under",
    "water",
    "snow",
)


@dataclass(frozen=True)
class Member:
    """One image: a range of bytes of a tar, and its caption."""

    tar: str
    start: int
    length: int
    caption: str


@dataclass(frozen=True)
class Corpus:
    """The finished corpus in a folder."""

    folder: Path

    @property
    def tars(self) -> list[str]:
        """Paths of the shards, in order."""
        return sorted(map(str, (self.folder / "shards").glob("*.tar")))

    @cached_property
    def members(self) -> list[Member]:
        """All images, in the order of the shards."""
        return [member for path in self.tars for member in _members(path)]

    def prepared(self, way: str) -> Prepared:
        """As `indexed` or `copied`."""
        return Prepared.open(self.folder / way)

    def warm(self) -> None:
        """Read every byte that a contender reads, so that none is the first to."""
        for path in [*self.tars, *map(str, (self.folder / "copied").rglob("*.tar"))]:
            Path(path).read_bytes()


def generate(folder: Path, images: int) -> Corpus:
    """The corpus of so many images, made once; the same bytes wherever it is made."""
    if not (folder / "shards").exists():
        aside = folder / f"shards.partial-{os.getpid()}"
        aside.mkdir(parents=True)
        _write_shards(aside, images)
        aside.rename(folder / "shards")
    return Corpus(folder)


def prepare_ways(corpus: Corpus, cpus: int, display: Display) -> None:
    """Prepare it with us, both ways; what is there already stays. Joins Ray."""
    cluster.start(cpus=cpus)
    config = corpus.folder / "prepare.yaml"
    for output, mode in WAYS.items():
        # image.size: as large as any image, so that copying keeps the bytes.
        config.write_text(
            f"source: {{name: webdataset, paths: {corpus.folder / 'shards'}}}\nmode: {mode}\noutput: {corpus.folder / output}\n"
            f"image: {{size: {SIDES[1]}}}\nsplits: {{}}\n"
        )
        prepare(load(PrepareSettings, config, {}), display)


def _members(path: str) -> list[Member]:
    with tarfile.open(path) as tar:
        members = tar.getmembers()
        captions = [tar.extractfile(member) for member in members[1::2]]
        texts = [caption.read().decode() for caption in captions if caption is not None]
    return [Member(path, m.offset_data, m.size, text) for m, text in zip(members[::2], texts, strict=True)]


def _write_shards(folder: Path, images: int) -> None:
    random = np.random.default_rng(0)
    fields = [_field(random) for _ in range(_FIELDS)]
    for first in range(0, images, SHARD_ROWS):
        with tarfile.open(folder / f"{first // SHARD_ROWS:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for row in range(first, min(first + SHARD_ROWS, images)):
                caption = f"image {row}: " + " ".join(random.choice(_WORDS, int(random.integers(4, 16))))
                for suffix, data in ((".jpg", _image(fields, random)), (".txt", caption.encode())):
                    info = tarfile.TarInfo(f"{row:06d}{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


def _field(random: np.random.Generator) -> np.ndarray:
    """Noise with a spectrum like that of photographs, at unit variance; float32 [side, side]."""
    frequency = np.hypot(np.fft.fftfreq(_FIELD_SIDE)[:, None], np.fft.rfftfreq(_FIELD_SIDE)[None])
    frequency[0, 0] = np.inf
    field = np.fft.irfft2(np.fft.rfft2(random.standard_normal((_FIELD_SIDE, _FIELD_SIDE))) / frequency**_FALLOFF)
    return (field / field.std()).astype(np.float32)


def _image(fields: list[np.ndarray], random: np.random.Generator) -> bytes:
    """A JPEG: pieces of the fields as brightness, with weaker ones as colour."""
    width, height = random.integers(SIDES[0], SIDES[1] + 1, size=2)

    def piece() -> np.ndarray:
        y, x = random.integers(0, _FIELD_SIDE - SIDES[1], size=2)
        return fields[int(random.integers(len(fields)))][y : y + height, x : x + width, None]

    light, warm, green = piece() + piece(), piece(), piece()
    colour = light * [1.0, 1.0, 1.0] + 0.4 * warm * [1.0, 0.0, -1.0] + 0.25 * green * [-0.5, 1.0, -0.5]
    buffer = io.BytesIO()
    Image.fromarray((120 + 40 * colour).clip(0, 255).astype(np.uint8)).save(buffer, format="JPEG", quality=QUALITY)
    return buffer.getvalue()
