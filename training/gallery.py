"""What a run's page shows of what the encoder finds: held-out captions and images with their nearest, as thumbnails."""

from typing import Any

from evaluation.reporting.number_format import ordinal
from evaluation.suite import HeldOut
from training.held_out import retrieval_of


def gallery_of(shown: dict[str, Any], data: HeldOut) -> dict[str, Any]:
    """The gallery that the retrieval task made when training ended, with thumbnails, in the page's words."""
    task = retrieval_of(data)
    assert task is not None
    thumbnails, num_images, num_texts = task.thumbnails(shown), len(data.sample_ids), len(data.texts)

    def thumbnail(image: str) -> dict[str, str]:
        return {"src": thumbnails[image], "alt": shown["alt"][image]}

    captions = []
    for item in shown["captions"]:
        found = [thumbnail(f["image"]) | {"hit": f["hit"]} for f in item["found"]]
        captions.append({"caption": item["caption"]} | _answers(found, item["place"], num_images, thumbnail(item["right"])))
    images = [
        thumbnail(item["image"]) | _answers(item["found"], item["place"], num_texts, item["right"]) for item in shown["images"]
    ]
    return {"captions": captions, "images": images, "num_images": num_images, "num_texts": num_texts}


def _answers(found: list[dict[str, Any]], place: int | None, candidates: int, own: Any) -> dict[str, Any]:
    """What was found and where the right one came; `own` is shown where that is not among what was found."""
    hits = [position for position, f in enumerate(found, 1) if f["hit"]]
    if hits:
        verdict = f"the right one found {'first' if hits[0] == 1 else ordinal(hits[0])}"
    elif place is None:
        verdict = "the right one has no place: its score is not a number"
    else:
        verdict = f"not among these; the right one comes {ordinal(place)} of {candidates:,}"
    return {"own": None if hits else own, "answers": [{"model": None, "verdict": verdict, "found": found}]}
