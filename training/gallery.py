"""Retrieved examples on a run's page: held-out captions and images with their nearest, as thumbnails."""

from collections.abc import Sequence
from typing import Any

from evaluation.reporting import html
from evaluation.reporting.number_format import ordinal
from evaluation.suite import HeldOut
from training.held_out import retrieval_of


def gallery(shown: dict[str, Any], data: HeldOut, credit: str) -> html.Section:
    """What the retrieval task found when training ended, with thumbnails."""
    task = retrieval_of(data)
    assert task is not None
    thumbnails, alt, num_images, num_texts = task.thumbnails(shown), shown["alt"], len(data.sample_ids), len(data.texts)
    captions, images = [], []
    for item in shown["captions"]:
        found = [html.Found(alt[f["image"]], f["hit"], thumbnails[f["image"]]) for f in item["found"]]
        own_image = None if any(f.hit for f in found) else thumbnails[item["right"]]
        captions.append(html.Example(item["caption"], [_answer(found, item["place"], num_images)], own_image))
    for item in shown["images"]:
        found = [html.Found(f["caption"], f["hit"]) for f in item["found"]]
        own = () if any(f.hit for f in found) else item["right"]
        images.append(
            html.Example(alt[item["image"]], [_answer(found, item["place"], num_texts)], thumbnails[item["image"]], own)
        )
    return html.section(
        "images",
        "Retrieved examples",
        html.paragraph(
            "Held-out captions and images, taken at even distances through the split and not picked by hand. <span "
            'class="tick" aria-hidden="true">&#10003;</span> and a thick frame mark right answers; where there is none, the '
            "right answer stands beside it, dashed."
        ),
        html.heading(f"{len(captions)} captions, each with the nearest of {num_images:,} images"),
        html.soft("A right image is shown for {} of {}.", sum(not example.src for example in captions), len(captions)),
        html.searches(captions),
        html.heading(f"{len(images)} images, each with the nearest of {num_texts:,} captions"),
        html.soft("A right caption is shown for {} of {}.", sum(not example.own for example in images), len(images)),
        html.cards(images),
        html.paragraph("Images and captions: {}", credit, style="credit"),
    )


def _answer(found: Sequence[html.Found], place: int | None, candidates: int) -> html.Answer:
    """What was found, and where the right one came."""
    hits = [position for position, f in enumerate(found, 1) if f.hit]
    if hits:
        verdict = f"the right one found {'first' if hits[0] == 1 else ordinal(hits[0])}"
    elif place is None:
        verdict = "the right one has no rank: its score is not a number"
    else:
        verdict = f"not among these; the right one comes {ordinal(place)} of {candidates:,}"
    return html.Answer(found, verdict)
