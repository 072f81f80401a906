"""The contenders of `benchmarks.ingest`: our stream, and three loaders over the same tars; and the limit, which only decodes.

A loader yields images [B, 3, size, size] and token ids int64 [B, L] into this process. Everybody uses one tokenizer and makes
one kind of view: a crop of half the image to all of it, mirrored every second time. `our view` is
`pipelines.dataset.views.train_view` in a peer's loader; the other form of each peer is what its users write.
"""

import functools
import io
import multiprocessing
import os
import random
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.ingest_corpus import Corpus, Member
from pipelines.dataset.images import open_image
from pipelines.dataset.order import Order
from pipelines.dataset.stream import Stream, Worker
from pipelines.dataset.tokenizer import TextTokenizer
from pipelines.dataset.views import Augment, train_view

AUGMENT = Augment()
Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Job:
    """What every contender is asked for."""

    corpus: Corpus
    tokenizer: TextTokenizer
    steps: int  # batches; they go on into the next epoch where the corpus ends
    batch: int
    size: int  # pixels
    cores: int

    def view(self, data: bytes | Image.Image) -> np.ndarray:
        """Our random view of encoded or decoded pixels."""
        image = open_image(data) if isinstance(data, bytes) else data
        view = train_view(image, self.size, AUGMENT, np.random.default_rng())
        return view if view.flags.c_contiguous and view.flags.writeable else view.copy()  # as torch's collating wants it

    def tokens(self, text: str) -> np.ndarray:
        """Token ids of one caption, int64 [L]."""
        return self.tokenizer([text])[0][0]

    def torchvision_view(self) -> Callable[[Image.Image], torch.Tensor]:
        """The same view as torchvision's users write it."""
        from torchvision import transforms as t  # type: ignore[import-untyped]

        bicubic = t.InterpolationMode.BICUBIC
        crop = t.RandomResizedCrop(self.size, scale=AUGMENT.crop_scale, ratio=AUGMENT.crop_ratio, interpolation=bicubic)
        return t.Compose([crop, t.RandomHorizontalFlip(), t.PILToTensor()])


def ours(job: Job, way: str) -> Batches:
    """What a training worker iterates, in a process that has joined Ray."""
    prepared = job.corpus.prepared(way)
    columns = frozenset({"image", "text", "text_mask"})
    stream = Stream(prepared, columns, image_size=job.size, augment=AUGMENT, tokenizer=job.tokenizer)
    order = Order(prepared, "train", None, 0, job.batch)
    for batch in stream.training(order, 0, job.steps, Worker(0, 1, torch.device("cpu"), float(job.cores))):
        yield batch["image"], batch["text"]


class TarImages(torch.utils.data.Dataset):
    """Members of tars by number, for torch's DataLoader."""

    def __init__(self, job: Job, view: Callable[[bytes], Any]):
        self.members, self.view, self.tokens = job.corpus.members, view, job.tokens
        self.files = {path: os.open(path, os.O_RDONLY) for path in job.corpus.tars}

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: int) -> tuple[Any, np.ndarray]:
        member = self.members[index]
        return self.view(os.pread(self.files[member.tar], member.length, member.start)), self.tokens(member.caption)


def torch_loader(job: Job, torchvision: bool) -> Batches:
    """torch's DataLoader with a worker a core, shuffled."""
    transform = job.torchvision_view()
    view = (lambda data: transform(Image.open(io.BytesIO(data)).convert("RGB"))) if torchvision else job.view
    dataset = TarImages(job, view)
    loader = torch.utils.data.DataLoader(
        dataset, job.batch, sampler=_epochs(len(dataset), job.steps * job.batch), num_workers=job.cores
    )
    for image, text in loader:
        yield torch.as_tensor(image), text


def web_dataset(job: Job, torchvision: bool) -> Batches:
    """webdataset's pipeline and loader: shuffled shards, a buffer of 1,000 samples, a worker a core."""
    import webdataset as wds

    dataset = wds.WebDataset(job.corpus.tars, shardshuffle=len(job.corpus.tars), seed=0).shuffle(1000)
    if torchvision:
        dataset = dataset.decode("pil").to_tuple("jpg", "txt").map_tuple(job.torchvision_view(), job.tokens)
    else:
        dataset = dataset.to_tuple("jpg", "txt").map_tuple(job.view, lambda data: job.tokens(data.decode()))
    dataset = dataset.batched(job.batch, partial=False).with_epoch(-(-job.steps // job.cores))
    for image, text in wds.WebLoader(dataset, batch_size=None, num_workers=job.cores):
        yield torch.as_tensor(image), torch.as_tensor(text)


def open_clip_loader(job: Job, own: bool) -> Batches:
    """open_clip's training loader; `own`: with its own views, which it normalises to float32 and does not mirror."""
    import open_clip
    from open_clip_train import data  # type: ignore[import-untyped]

    # open_clip 3.3 asks for webdataset 0.2.86: later ones mark the end of a tar with an empty sample, on which it fails, unless
    # they are told not to.
    data.tar_file_expander = functools.partial(data.tar_file_expander, eof_value=None)
    first, last = (path.removesuffix(".tar")[-5:] for path in (job.corpus.tars[0], job.corpus.tars[-1]))
    told = Namespace(
        train_data=f"{job.corpus.folder}/shards/{{{first}..{last}}}.tar",
        train_num_samples=job.steps * job.batch,
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        batch_size=job.batch,
        world_size=1,
        workers=job.cores,
        seed=0,
    )
    view = open_clip.image_transform(job.size, is_train=True, aug_cfg={"scale": AUGMENT.crop_scale}) if own else job.view
    info = data.get_wds_dataset(told, view, is_train=True, tokenizer=lambda text: job.tokenizer([text])[0])
    for image, text in info.dataloader:
        yield torch.as_tensor(image), torch.as_tensor(text)


CONTENDERS: dict[str, Callable[[Job], Batches]] = {
    "ours, indexed": lambda job: ours(job, "indexed"),
    "ours, copied": lambda job: ours(job, "copied"),
    "torch DataLoader, our view": lambda job: torch_loader(job, torchvision=False),
    "torch DataLoader, torchvision": lambda job: torch_loader(job, torchvision=True),
    "webdataset, our view": lambda job: web_dataset(job, torchvision=False),
    "webdataset, torchvision": lambda job: web_dataset(job, torchvision=True),
    "open_clip, our view": lambda job: open_clip_loader(job, own=False),
    "open_clip, its own": lambda job: open_clip_loader(job, own=True),
}
OURS = tuple(name for name in CONTENDERS if name.startswith("ours"))
LIMITS = {"bare Pillow, drafted": True, "bare Pillow": False}


def limit(job: Job, drafted: bool) -> float:
    """Images a second of as many processes as cores, which read, decode, crop, resize and mirror, and hand nothing over."""
    members = job.corpus.members
    chosen = [members[i] for i in _epochs(len(members), job.steps * job.batch)]
    context = multiprocessing.get_context("fork")
    barrier, ends = context.Barrier(job.cores + 1), context.Queue()

    def work(part: list[Member]) -> None:
        barrier.wait()
        _bare_loop(part, job, drafted)
        ends.put(time.monotonic())

    processes = [context.Process(target=work, args=(chosen[core :: job.cores],)) for core in range(job.cores)]
    for process in processes:
        process.start()
    barrier.wait()
    start = time.monotonic()
    last = max(ends.get() for _ in processes)
    for process in processes:
        process.join()
    return len(chosen) / (last - start)


def _bare_loop(members: list[Member], job: Job, drafted: bool) -> None:
    files = {path: os.open(path, os.O_RDONLY) for path in job.corpus.tars}
    batch = np.empty((job.batch, 3, job.size, job.size), dtype=np.uint8)
    for row, member in enumerate(members):
        image = Image.open(io.BytesIO(os.pread(files[member.tar], member.length, member.start)))
        width, height = image.size
        box = _crop(width, height)
        if drafted:
            least = (width * job.size / (box[2] - box[0]), height * job.size / (box[3] - box[1]))
            image.draft("RGB", (int(np.ceil(least[0])), int(np.ceil(least[1]))))
            across, down = image.width / width, image.height / height
            box = (box[0] * across, box[1] * down, min(box[2] * across, image.width), min(box[3] * down, image.height))
        view = image.resize((job.size, job.size), Image.Resampling.BICUBIC, box=box)
        if random.random() < 0.5:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        batch[row % job.batch] = np.asarray(view).transpose(2, 0, 1)


def _crop(width: int, height: int) -> tuple[float, float, float, float]:
    for _ in range(10):
        area = random.uniform(*AUGMENT.crop_scale) * width * height
        ratio = np.exp(random.uniform(*np.log(AUGMENT.crop_ratio)))
        w, h = float(np.sqrt(area * ratio)), float(np.sqrt(area / ratio))
        if w <= width and h <= height:
            x, y = random.uniform(0, width - w), random.uniform(0, height - h)
            return x, y, x + w, y + h
    return 0.0, 0.0, float(width), float(height)


def _epochs(rows: int, count: int) -> list[int]:
    """`count` row numbers: epoch after epoch, each permuted anew."""
    epochs = [np.random.default_rng(epoch).permutation(rows) for epoch in range(-(-count // rows))]
    return [int(row) for row in np.concatenate(epochs)[:count]]
