"""What a run's page shows of what the encoder finds: held-out captions and images with their nearest, as thumbnails."""

from typing import Any

from evaluation.suite import HeldOut
from training.held_out import retrieval_of


def gallery_of(shown: dict[str, Any], data: HeldOut) -> dict[str, Any]:
    """The gallery that the retrieval task made when training ended, with thumbnails, in the page's words."""
    task = retrieval_of(data)
    assert task is not None
    thumbnails = task.thumbnails(shown)

    def thumbnail(image: str) -> dict[str, str]:
        return {"src": thumbnails[image], "alt": shown["alt"][image]}

    captions = []
    for item in shown["captions"]:
        found = [thumbnail(f["image"]) | {"hit": f["hit"]} for f in item["found"]]
        captions.append({"caption": item["caption"], "found": found, "right": thumbnail(item["right"])} | _place(item))
    images = [item | {"image": thumbnail(item["image"])} | _place(item) for item in shown["images"]]
    return {"captions": captions, "images": images, "num_images": len(data.sample_ids), "num_texts": len(data.texts)}


def _place(item: dict[str, Any]) -> dict[str, int | None]:
    """`hit_at`: place of the first hit shown, from 1; `place`: of the best right one, None if it has none."""
    hits = [place for place, f in enumerate(item["found"], 1) if f["hit"]]
    return {"hit_at": hits[0] if hits else None, "place": item["place"]}
