"""What a run's page shows of what the encoder finds: held-out captions and images with their nearest, as thumbnails."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from evaluation import retrieval
from evaluation.suite import HeldOut, gallery
from pipelines.dataset.prepared import Prepared
from pipelines.dataset.sample_images import whole_images

_THUMBNAIL = 128  # pixels of the longer side; shown at up to 96, so that dense screens stay sharp


def gallery_of(prepared: Prepared, data: HeldOut, images: np.ndarray, texts: np.ndarray) -> dict[str, Any]:
    """The gallery with thumbnails, and where the right one came where it is not among those shown."""
    shown = gallery(data, images, texts)
    wanted = {item["right"] for item in shown["captions"]} | {item["sample_id"] for item in shown["images"]}
    wanted |= {found["sample_id"] for item in shown["captions"] for found in item["found"]}
    thumbnails = _thumbnails(prepared, sorted(wanted))
    index = {int(sample_id): i for i, sample_id in enumerate(data.sample_ids)}
    first_text = {int(image): t for t, image in reversed(list(enumerate(data.image_of_text)))}

    def thumbnail(sample_id: int) -> dict[str, str]:
        return {"src": thumbnails[sample_id], "alt": data.texts[first_text[index[sample_id]]]}

    captions = []
    for item in shown["captions"]:
        own = np.flatnonzero(data.image_of_text == index[item["right"]])
        t = next(t for t in own if data.texts[t] == item["caption"])
        rank = retrieval.ranks(texts[[t]], images, [data.images_of_text[t]])[0]
        found = [thumbnail(f["sample_id"]) | {"hit": f["hit"]} for f in item["found"]]
        captions.append({"caption": item["caption"], "found": found, "right": thumbnail(item["right"])} | _place(found, rank))
    queries = []
    for item in shown["images"]:
        i = index[item["sample_id"]]
        rank = retrieval.ranks(images[[i]], texts, [data.texts_of_image[i]])[0]
        queries.append({"image": thumbnail(item["sample_id"]), **item} | _place(item["found"], rank))
    return {"captions": captions, "images": queries, "num_images": len(images), "num_texts": len(texts)}


def _place(found: Sequence[dict[str, Any]], rank: int) -> dict[str, int | None]:
    """`hit_at`: place of the first hit shown, from 1; `place`: of the right one where none is shown, None if it has none."""
    hits = [place for place, f in enumerate(found, 1) if f["hit"]]
    return {"hit_at": hits[0] if hits else None, "place": None if rank == retrieval.MISS else int(rank) + 1}


def _thumbnails(prepared: Prepared, sample_ids: list[int]) -> dict[int, str]:
    """Small images as data URIs, by sample id."""
    result = {}
    images = whole_images(prepared, np.asarray(sample_ids, dtype=np.int64))
    for sample_id, small in zip(sample_ids, images, strict=True):
        small.thumbnail((_THUMBNAIL, _THUMBNAIL))
        file = io.BytesIO()
        small.save(file, "WEBP", quality=85)
        result[sample_id] = f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
    return result
