"""Retrieved examples on a page: captions with the images that one model or several found, and images with captions."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from evaluation.reporting.html import Model, div, fill, more, named, paragraph, soft, tag
from evaluation.reporting.number_format import count, ordinal

_IMAGE = "data:image/"  # all that a page may show: nothing is loaded from anywhere
_Answers = list[tuple["Gallery", Mapping[str, Any]]]


@dataclass(frozen=True)
class Gallery:
    """What a model found, as `evaluation.tasks.retrieval.Retrieval.gallery` tells it."""

    examples: Mapping[str, Any]
    thumbnails: Mapping[str, Any]  # data URIs by the images' names
    sizes: Mapping[str, int | None]  # number of `captions` and `images` that were searched
    model: Model | None = None  # None on the page of a model alone, where what is right is only shown if it was not found

    def thumb(self, name: Any, otherwise: str) -> Markup:
        """An image, with what it shows for screen readers: a caption of its own, or else these words."""
        src, alt = self.thumbnails.get(str(name)), self.examples.get("alt", {}).get(str(name), otherwise)
        if not (isinstance(src, str) and src.startswith(_IMAGE)):
            return tag("span", "no image", style="thumb lost")
        return fill('<img class="thumb" src="{}" alt="{}" title="{}" loading="lazy">', src, alt, alt)

    def who(self, item: Mapping[str, Any], searched: str) -> Markup:
        """The model, and where the right answer came: to be read on the page of a single model, else for screen readers."""
        hits = [place for place, found in enumerate(item["found"], 1) if found["hit"]]
        if hits:
            verdict = f"the right one found {'first' if hits[0] == 1 else ordinal(hits[0])}"
        elif "place" not in item:
            verdict = "none of these is right"
        elif item["place"] is None:
            verdict = "the right one has no rank: its score is not a number"
        else:
            verdict = f"not among these; the right one comes {ordinal(item['place'])}{_of(self.sizes[searched])}"
        if self.model is None:
            return tag("span", verdict, style="verdict")
        return div("who", fill('{}<span class="hidden">: {}</span>', named(self.model), verdict))

    def images(self, item: Mapping[str, Any]) -> Iterator[Markup]:
        """Those that were found for a caption."""
        for place, found in enumerate(item["found"], 1):
            thumb = self.thumb(found["image"], "right" if found["hit"] else "not right")
            yield tag("div", thumb, place, " \N{CHECK MARK} right" * found["hit"], style="slot" + " hit" * found["hit"])


def _listed(item: Mapping[str, Any]) -> Iterator[Markup]:
    """Captions that were found for an image."""
    for place, found in enumerate(item["found"], 1):
        mark = tag("span", "\N{CHECK MARK}" if found["hit"] else place, style="place")
        hidden = tag("span", "right: ", style="hidden") if found["hit"] else ""
        text = tag("span", hidden, found["caption"], style="clamp", title=found["caption"])
        yield tag("li", mark, text, style="hit" * found["hit"])


def examples(galleries: Sequence[Gallery], open: bool = True) -> list[Markup]:
    """Both ways: what the models found, and how often a right answer is among it."""
    elements = []
    for kind, found, items in (("captions", "images", _captions(galleries)), ("images", "captions", _images(galleries))):
        if items:
            title = f"{count(len(items), kind[:-1])}, each with the nearest{_of(galleries[0].sizes[found])} {found}"
            hits = [sum(any(f["hit"] for f in i["found"]) for i in g.examples.get(kind, [])) for g in galleries]
            shown = (f"{hit:,}" + (f" ({g.model.name})" if g.model else "") for g, hit in zip(galleries, hits, strict=True))
            about = soft("A right {} is shown for {} of {:,}.", found[:-1], ", ".join(shown), len(items))
            elements.append(more(title, about, tag("ol", *items, style="cards" * (kind == "images")), open=open))
    for gallery in galleries:
        if errors := gallery.examples.get("errors"):
            of = f" of {gallery.model.name}" if gallery.model else ""
            about = soft("Images whose own caption comes just behind a wrong one, those that miss by least first; with cosines.")
            cards = tag("ol", *(_error(gallery, error) for error in errors), style="cards")
            elements.append(more(f"Nearest errors{of}", about, cards, open=open and gallery.model is None))
    return elements


def _error(gallery: Gallery, error: Mapping[str, Any]) -> Markup:
    """An image with the caption that it preferred and its own."""
    lines = []
    for name, place, cosine in zip(("wrong", "right"), (1, error["place"]), error["cosines"], strict=True):
        hidden = tag("span", f"{name}: ", style="hidden")
        text = tag("span", hidden, error[name], style="clamp", title=error[name])
        mark = tag("span", f"{ordinal(place)}, {cosine:.3f}", style="place")
        lines.append(tag("li", mark, text, style="hit" * (name == "right")))
    return tag("li", gallery.thumb(error["image"], error["right"]), div("answers", tag("ol", *lines)), style="miss")


def _of(total: int | None) -> str:
    return "" if total is None else f" of {total:,}"


def _captions(galleries: Sequence[Gallery]) -> list[Markup]:
    """An <li> a caption with the images that were found for it; the same caption of all models together."""
    items = []
    for caption, answers in _by_query(galleries, "captions", "caption"):
        finds = [div("find", g.who(item, "images"), *g.images(item)) for g, item in answers]
        thumbs = [g.thumb(item["right"], caption) for g, item in answers if str(item.get("right")) in g.thumbnails]
        own = div("answer", thumbs[0], tag("span", "its own image")) if thumbs and _tells_own(answers) else ""
        query = tag("div", caption, style="query clamp", title=caption)
        items.append(tag("li", tag("div", query, own), div("finds", *finds), style="search"))
    return items


def _images(galleries: Sequence[Gallery]) -> list[Markup]:
    """An <li> an image with the captions that were found for it."""
    items = []
    for name, answers in _by_query(galleries, "images", "image"):
        finds = [tag("div", g.who(item, "captions"), tag("ol", *_listed(item))) for g, item in answers]
        (gallery, first), *_ = answers
        right = "; ".join(map(str, first.get("right", [])))
        own = paragraph("<b>Its own:</b> {}", right, style="answer clamp") if right and _tells_own(answers) else ""
        items.append(tag("li", gallery.thumb(name, right or "query"), div("answers", *finds), own, style="card"))
    return items


def _by_query(galleries: Sequence[Gallery], kind: str, key: str) -> list[tuple[str, _Answers]]:
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
    return any(gallery.model or not any(found["hit"] for found in item["found"]) for gallery, item in answers)
