"""Processing of captions for a prepared dataset: cleaning, truncation, rejection, and shuffling to study noise. Pure functions.

Cleaning follows ALBEF's public code (Li et al., "Align before Fuse", NeurIPS 2021, arXiv 2107.07651), which many later projects
copied.
"""

import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np
from pydantic import Field

from pipelines.program.settings_base import Settings
from pipelines.sources.base import Pair, Rejected

_STRIPPED = re.compile(r"[,.'!?\"()*#:;~]")


class CaptionSettings(Settings):
    """How captions are processed before they are stored."""

    clean: bool = Field(False, description="lower case, no punctuation, one space between words")
    max_words: int | None = Field(None, ge=1, description="longer captions are cut to this many words")
    reject_words: int = Field(1000, ge=1, description="longer captions are rejected, before any is cut")
    reject_characters: int = Field(
        10_000, ge=1, description="longer captions are rejected likewise; languages without spaces have words of any length"
    )
    shuffled: float = Field(
        0.0, ge=0, le=1, description="share of the train split's rows that exchange captions, to study noisy data"
    )
    shuffle_seed: int = Field(0, ge=0, description="seed of the choice of rows")


def clean(caption: str) -> str:
    """Lower case, without , . ' ! ? " ( ) * # : ; ~; hyphens and slashes become spaces, "<person>" "person"; single spaces."""
    text = _STRIPPED.sub("", caption.lower())
    return " ".join(text.replace("-", " ").replace("/", " ").replace("<person>", "person").split())


def truncate(caption: str, words: int) -> str:
    """At most this many words; a short enough caption is unchanged."""
    kept = caption.split()
    return caption if len(kept) <= words else " ".join(kept[:words])


def usable(pair: Pair, settings: CaptionSettings) -> Pair | Rejected:
    """The pair with its processed captions, or why it is rejected.

    A NUL does not occur in real text: some programs end the text there, others refuse it.
    """
    if any("\0" in text for text in (pair.key, pair.group, *pair.captions, *pair.labels.values())):
        return Rejected(pair.key.replace("\0", ""), pair.origin, "bad_row", "a NUL in its text")
    characters = max(map(len, pair.captions), default=0)
    if characters > settings.reject_characters:
        return Rejected(pair.key, pair.origin, "caption_too_long", f"{characters} characters")
    captions = [clean(caption) for caption in pair.captions] if settings.clean else pair.captions
    if not captions or not all(caption.strip() for caption in captions):
        return Rejected(pair.key, pair.origin, "empty_caption", "no text")
    longest = max(len(caption.split()) for caption in captions)
    if longest > settings.reject_words:
        return Rejected(pair.key, pair.origin, "caption_too_long", f"{longest} words")
    if settings.max_words is not None:
        captions = [truncate(caption, settings.max_words) for caption in captions]
    # A group named by its caption is renamed with it, so captions that have become equal stay in one split.
    is_named_by_caption = pair.group == pair.captions[0].lower()
    return replace(pair, captions=captions, group=captions[0].lower() if is_named_by_caption else pair.group)


def exchange(captions: Sequence[Hashable], share: float, random: np.random.Generator) -> dict[int, int]:
    """Choose `round(share * rows)` rows at random. Returns {row: the row whose captions it gets}.

    No row gets captions equal to its own, unless more than half of the chosen rows have equal captions: then as few as possible
    keep their own, and map to themselves.
    """
    chosen = random.permutation(len(captions))[: round(share * len(captions))].tolist()
    # Sort equal captions together in a circle; each row takes the captions as far ahead as the longest run of equals.
    counts = Counter(captions[row] for row in chosen)
    place = {caption: index for index, caption in enumerate(counts)}
    chosen.sort(key=lambda row: place[captions[row]])
    ahead = max(counts.values(), default=0)
    givers = chosen[ahead:] + chosen[:ahead]
    pairs = zip(chosen, givers, strict=True)
    return {row: row if captions[row] == captions[giver] else giver for row, giver in pairs}
