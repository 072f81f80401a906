"""Images that tests can tell apart: each is of one grey, which is its number (and which a JPEG keeps)."""

import io
import pickle
from typing import Any

import numpy as np
from PIL import Image

from evaluation.data.base import Content, Images
from pipelines.program.settings import validate


def encoded(number: int, kind: str = "PNG", size: tuple[int, int] = (6, 4), **options: Any) -> bytes:
    """An image of this number."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (number, number, number)).save(buffer, format=kind, **options)
    return buffer.getvalue()


def on_its_side(number: int) -> bytes:
    """A JPEG 6 wide and 4 high, which EXIF says is to be turned by 90 degrees: displayed, it is 4 wide."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(number, "JPEG", exif=exif, quality=100)


def numbers(images: Images, indices: list[int] | None = None) -> list[int]:
    """The numbers of some images, all by default, as a process that was sent them reads them."""
    sent = pickle.loads(pickle.dumps(images))
    assert len(sent) == len(images) and sent.fingerprint == images.fingerprint
    read = list(sent.read(np.arange(len(sent)) if indices is None else np.asarray(indices)))
    assert all(image.mode == "RGB" for image in read)
    return [int(np.asarray(image)[0, 0, 0]) for image in read]


def read(settings: type, key: str = "data.toy", **values: Any) -> Content:
    """What a reader of these settings finds; `name` is the only one that its class has."""
    name = settings.model_fields["name"].annotation.__args__[0]
    return validate(settings, {"name": name, **values}, "toy.yaml").read(key)


def told(content: Content) -> dict[str, Any]:
    """All that is right about a content's images, by their numbers: what no layout may change."""
    found: dict[str, Any] = {}
    for label, data in content.classifications.items():
        parts = {"test": data.test, "train": data.train, "validation": data.validation}
        found[label] = {
            part: list(zip(numbers(labelled.images), labelled.labels.tolist(), strict=True))
            for part, labelled in parts.items()
            if labelled is not None
        } | {"classes": data.classes, "templates": data.templates, "metric": data.metric}
    if content.retrieval is not None:
        shown, texts, right = content.retrieval.images, content.retrieval.texts, content.retrieval.texts_of_image
        found["retrieval"] = [(number, [texts[t] for t in own]) for number, own in zip(numbers(shown), right, strict=True)]
    return found
