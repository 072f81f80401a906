"""What the name of an icon says: "arrow-left-circle-outline-24" is the drawing "arrow-left-circle" in the style "outline".

A set's own lists of prefixes and suffixes come first. In sets that have none, words such as "filled" are a style wherever they
end a name; words that may also be a thing ("line", "light") are one if they end a tenth of the set's names. The rest, without
style, size and number, is the drawing: the same thing in the set's other styles has the same.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

_STYLES = frozenset(("duotone", "fill", "filled", "outline", "outlined", "regular", "rounded", "solid", "twotone"))
_OFTEN_STYLES = (
    *((word,) for word in ("bold", "broken", "duo", "flat", "line", "linear", "o", "round", "sharp", "thin")),
    ("light", "medium", "dark"),  # themes, and colours of skin
    ("one", "two", "three", "four", "five", "six"),
)
_SHARE = 0.1  # of a set's names, which such a word must end
_SKIN = re.compile(r"(-medium)?(-light|-medium|-dark)?-skin-tone|-tone[1-5]\b")
_VERSION = re.compile(r"\d{1,3}(px)?|alt|alternate|alternative|variant")
_SAME = {"fill": "filled", "outlined": "outline", "twotone": "two tone", "o": "outline"}


@dataclass(frozen=True)
class IconName:
    """The parts of a name."""

    words: str  # the whole name, as words
    drawing: str  # without style, size and number, as in the name: with hyphens
    style: str  # words; empty if the name and its set say nothing


@dataclass(frozen=True)
class Naming:
    """How the icons of one set are named."""

    names: Collection[str]  # of all icons
    prefixes: Mapping[str, str]  # with their titles; that of "" is the style of names without any
    suffixes: Mapping[str, str]

    def read(self, name: str) -> IconName:
        """The parts of one of the names."""
        rest, style = self._without_affixes(name)
        words = (_SKIN.sub("", rest) or rest).split("-")
        found: list[str] = []
        while len(words) > 1 and (words[-1] in self._style_words or _VERSION.fullmatch(words[-1])):
            word = words.pop()
            if word in self._style_words and word not in _OFTEN_STYLES[-1]:
                found.insert(0, _SAME.get(word, word))
        return IconName(" ".join(name.split("-")), "-".join(words), style or " ".join(found))

    def _without_affixes(self, name: str) -> tuple[str, str]:
        for affixes, begins in ((self.prefixes, True), (self.suffixes, False)):
            for affix in sorted(filter(None, affixes), key=len, reverse=True):
                rest = name.removeprefix(f"{affix}-") if begins else name.removesuffix(f"-{affix}")
                if rest and rest != name:
                    return rest, _title(affixes[affix])
        return name, _title(self.suffixes.get("", self.prefixes.get("", "")))

    @cached_property
    def _style_words(self) -> frozenset[str]:
        if any(self.prefixes) or any(self.suffixes):
            return frozenset()
        last = [name.rsplit("-", 1)[-1] for name in self.names if "-" in name]
        often = (words for words in _OFTEN_STYLES if sum(word in words for word in last) >= _SHARE * len(self.names))
        return _STYLES.union(*often)


def _title(title: str) -> str:
    """The words of a style's title, without sizes: "Outline 24x24" is "outline"."""
    words = title.lower().replace("-", " ").split()
    return " ".join(_SAME.get(word, word) for word in words if not re.search(r"\d", word))
