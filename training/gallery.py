"""Retrieved examples on a run's page: held-out captions and images with their nearest, as thumbnails."""

from typing import Any

from evaluation.reporting import gallery, html
from evaluation.suite import HeldOut
from training.held_out import retrieval_of


def retrieved(examples: dict[str, Any], data: HeldOut, credit: str) -> html.Section:
    """What the retrieval task found when training ended, with thumbnails."""
    task, sizes = retrieval_of(data), {"captions": len(data.texts), "images": len(data.sample_ids)}
    assert task is not None
    own = gallery.Gallery(examples, task.thumbnails(examples), sizes=sizes)
    right = {kind: sum(any(f["hit"] for f in item["found"]) for item in examples[kind]) for kind in sizes}
    of = {kind: len(examples[kind]) for kind in sizes}
    return html.section(
        "images",
        "Retrieved examples",
        html.paragraph(
            "Held-out captions and images, taken at even distances through the split and not picked by hand. <span "
            'class="tick" aria-hidden="true">&#10003;</span> and a thick frame mark right answers; where there is none, the '
            "right answer stands beside it, dashed."
        ),
        html.tag("h3", f"{of['captions']} captions, each with the nearest of {sizes['images']:,} images"),
        html.soft("A right image is shown for {} of {}.", right["captions"], of["captions"]),
        html.tag("ol", *gallery.captions([own]), style="searches"),
        html.tag("h3", f"{of['images']} images, each with the nearest of {sizes['captions']:,} captions"),
        html.soft("A right caption is shown for {} of {}.", right["images"], of["images"]),
        html.tag("ol", *gallery.images([own]), style="cards"),
        html.paragraph("Images and captions: {}", credit, style="credit"),
    )
