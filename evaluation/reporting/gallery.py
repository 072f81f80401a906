"""Retrieved examples on a page: captions with the images that one model or several found, and images with captions."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from evaluation.reporting.html import Model, div, fill, join, named, paragraph
from evaluation.reporting.number_format import ordinal

_IMAGE = "data:image/"  # all that a page may show: nothing is loaded from anywhere
_Answers = list[tuple["Gallery", Mapping[str, Any]]]


@dataclass(frozen=True)
class Gallery:
    """What a model found, as `evaluation.tasks.retrieval.Retrieval.gallery` tells it."""

    examples: Mapping[str, Any]
    thumbnails: Mapping[str, Any]  # data URIs by the images' names
    model: Model | None = None  # None on the page of a model alone, where what is right is only shown if it was not found
    sizes: Mapping[str, int] | None = None  # number of `captions` and `images` that were searched

    def thumb(self, name: Any, alt: str) -> Markup:
        src = self.thumbnails.get(str(name))
        if not (isinstance(src, str) and src.startswith(_IMAGE)):
            return Markup('<span class="thumb lost">no image</span>')
        return fill('<img class="thumb" src="{}" alt="{}" title="{}" loading="lazy">', src, alt, alt)

    def alt(self, name: Any, otherwise: str) -> str:
        return self.examples.get("alt", {}).get(str(name), otherwise)

    def who(self, item: Mapping[str, Any], searched: str) -> Markup:
        """The model, and where the right answer came: to be read on the page of a single model, else for screen readers."""
        hits = [place for place, found in enumerate(item.get("found", []), 1) if found["hit"]]
        if hits:
            verdict = f"the right one found {'first' if hits[0] == 1 else ordinal(hits[0])}"
        elif "place" not in item:
            verdict = "none of these is right"
        elif item["place"] is None:
            verdict = "the right one has no rank: its score is not a number"
        else:
            verdict = f"not among these; the right one comes {ordinal(item['place'])}"
            verdict += f" of {self.sizes[searched]:,}" if self.sizes else ""
        if self.model is None:
            return fill('<span class="verdict">{}</span>', verdict)
        return fill('<div class="who">{}<span class="hidden">: {}</span></div>', named(self.model), verdict)


def captions(galleries: Iterable[Gallery]) -> list[Markup]:
    """An <li> a caption with the images that were found for it; the same caption of all models together."""
    items = []
    for caption, answers in _by_query(galleries, "captions", "caption"):
        finds = []
        for gallery, item in answers:
            slots = []
            for place, found in enumerate(item.get("found", []), 1):
                alt = gallery.alt(found["image"], "right" if found["hit"] else "not right")
                after = f"{place} \N{CHECK MARK} right" if found["hit"] else place
                words = '<div class="slot{}">{}{}</div>'
                slots.append(fill(words, " hit" * found["hit"], gallery.thumb(found["image"], alt), after))
            finds.append(div("find", gallery.who(item, "images"), *slots))
        known = (one.thumb(item["right"], caption) for one, item in answers if str(item.get("right")) in one.thumbnails)
        thumb, own = next(known, None), Markup("")
        if thumb and _tells_own(answers):
            own = fill('<div class="answer">{}<span>its own image</span></div>', thumb)
        words = '<li class="search"><div><div class="query clamp" title="{}">{}</div>{}</div>{}</li>'
        items.append(fill(words, caption, caption, own, div("finds", *finds)))
    return items


def images(galleries: Iterable[Gallery]) -> list[Markup]:
    """An <li> an image with the captions that were found for it."""
    items = []
    for name, answers in _by_query(galleries, "images", "image"):
        (gallery, first), blocks = answers[0], []
        for answering, item in answers:
            lines = []
            for place, found in enumerate(item.get("found", []), 1):
                hidden = Markup('<span class="hidden">right: </span>' if found["hit"] else "")
                mark, text = "\N{CHECK MARK}" if found["hit"] else place, str(found["caption"])
                words = '<li class="{}"><span class="place">{}</span><span class="clamp" title="{}">{}{}</span></li>'
                lines.append(fill(words, "hit" * found["hit"], mark, text, hidden, text))
            listed, who = fill("<ol>{}</ol>", join(*lines)), answering.who(item, "captions")
            blocks.append(fill("<div>{}</div>", join(who, listed) if answering.model else join(listed, who)))
        right = "; ".join(map(str, first.get("right", [])))
        own = paragraph("<b>Its own:</b> {}", right, style="answer clamp") if right and _tells_own(answers) else ""
        thumb = gallery.thumb(name, gallery.alt(name, right or "query"))
        items.append(fill('<li class="card">{}{}{}</li>', thumb, div("answers", *blocks), own))
    return items


def _by_query(galleries: Iterable[Gallery], kind: str, key: str) -> list[tuple[str, _Answers]]:
    """Queries, each with what every model found for it; one that a model was given twice stands twice."""
    queries: dict[tuple[str, int], _Answers] = {}
    for gallery in galleries:
        seen = Counter[str]()
        for item in gallery.examples.get(kind, []):
            query = str(item[key])
            queries.setdefault((query, seen[query]), []).append((gallery, item))
            seen[query] += 1
    return [(query, answers) for (query, _), answers in queries.items()]


def _tells_own(answers: _Answers) -> bool:
    """Beside several models always; beside one where it found nothing right."""
    return any(gallery.model or not any(found["hit"] for found in item.get("found", [])) for gallery, item in answers)
