"""Changed captions: one sentence of a long one; and other words, by easy data augmentation as DeCLIP uses it.

EDA (Wei and Zou, EMNLP 2019, arXiv 1901.11196): one of three changes is drawn for each caption: replace some words with synonyms,
swap some pairs of words, or drop some words. The number is a fraction of the caption's words. If a change does not apply, another
is tried; a single word without a synonym is unchanged.
"""

import re

import numpy as np

from pipelines.dataset.synonyms import SYNONYMS

_BETWEEN_SENTENCES = re.compile(r"(?<=[.!?])\s+")
_SHARE = 0.1  # of the words


def one_sentence(caption: str, chance: float, random: np.random.Generator) -> str:
    """A caption of several sentences cut to one of them with this chance, or unchanged."""
    sentences = _BETWEEN_SENTENCES.split(caption.strip())
    if len(sentences) < 2 or random.random() >= chance:
        return caption
    return sentences[int(random.integers(len(sentences)))]


def other_words(caption: str, random: np.random.Generator) -> str:
    """The caption after one change that applies, or unchanged; never empty unless it was empty."""
    words = caption.split()
    changes = (_by_synonyms, _swapped, _thinned)
    for which in random.permutation(len(changes)).tolist():
        changed = changes[which](words, random)
        if changed is not None:
            return " ".join(changed)
    return caption


def _count(words: list[str]) -> int:
    return max(1, int(_SHARE * len(words)))


def _by_synonyms(words: list[str], random: np.random.Generator) -> list[str] | None:
    """Replace distinct words that have synonyms, as many as the fraction allows."""
    replaceable = [i for i, word in enumerate(words) if word.lower() in SYNONYMS]
    if not replaceable:
        return None
    changed = list(words)
    for i in random.permutation(replaceable)[: _count(words)].tolist():
        others = SYNONYMS[words[i].lower()]
        changed[i] = others[int(random.integers(len(others)))]
    return changed


def _swapped(words: list[str], random: np.random.Generator) -> list[str] | None:
    """Swap two words, as many times as the fraction gives."""
    if len(words) < 2:
        return None
    changed = list(words)
    for _ in range(_count(words)):
        i, j = random.choice(len(words), 2, replace=False).tolist()
        changed[i], changed[j] = changed[j], changed[i]
    return changed


def _thinned(words: list[str], random: np.random.Generator) -> list[str] | None:
    """Drop each word with the fraction as probability; at least one remains."""
    if len(words) < 2:
        return None
    kept = [word for word in words if random.random() >= _SHARE]
    return kept or [words[int(random.integers(len(words)))]]
