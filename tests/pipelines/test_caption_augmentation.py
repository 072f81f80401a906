"""One sentence of a caption; captions in other words: one change, as large as its share, keyed and never to nothing."""

from collections import Counter

import pytest

from pipelines.dataset.caption_augmentation import one_sentence, other_words
from pipelines.dataset.synonyms import SYNONYMS
from pipelines.program.randomness import generator

LONG = "a big dog and a small cat play near the old house by the river while two happy children watch them run"


def changes(caption: str, count: int = 600) -> list[str]:
    return [other_words(caption, generator("eda", 0, 0, sample)) for sample in range(count)]


def test_each_change_is_made_about_as_often() -> None:
    found = Counter()
    before = LONG.split()
    for text in changes(LONG):
        after = text.split()
        if sorted(after) == sorted(before):
            found["swapped"] += 1
        elif len(after) == len(before):
            found["synonyms"] += 1
            different = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
            assert len(different) == 2, "a tenth of 22 words"
            assert all(new in SYNONYMS[old] for old, new in different)
        else:
            found["thinned"] += 1
            rest = iter(before)
            assert all(word in rest for word in after), "in their order"
    # Now and then leaving words out leaves out none.
    assert found["synonyms"] > 140 and found["swapped"] > 140 and found["thinned"] > 130


def test_how_many_words_are_left_out() -> None:
    lengths = [len(text.split()) for text in changes(LONG, 2000) if len(text.split()) < len(LONG.split())]
    # Of 22 words, each stays with 0.9; those that left out none are not among them.
    expected = (22 * 0.9 - 22 * 0.9**22) / (1 - 0.9**22)
    assert abs(sum(lengths) / len(lengths) - expected) < 0.2


@pytest.mark.parametrize("caption", ["xylophone", "", "   "])
def test_what_cannot_be_said_otherwise_stays(caption: str) -> None:
    assert set(changes(caption, 50)) == {caption}


def test_a_single_word_may_have_a_synonym() -> None:
    assert set(changes("Photo", 200)) == {"photograph", "picture", "image"}


def test_no_caption_becomes_empty() -> None:
    assert all(text for text in changes("two dogs", 2000))


def test_other_words_are_a_function_of_the_key() -> None:
    assert changes(LONG, 50) == changes(LONG, 50) and len(set(changes(LONG, 50))) > 30


def test_the_table_goes_both_ways_and_never_to_itself() -> None:
    assert len(SYNONYMS) > 250
    for word, others in SYNONYMS.items():
        assert word == word.lower() and word not in others and others
        assert all(word in SYNONYMS[other] for other in others)


def test_a_sentence_is_drawn_as_often_as_asked_for_and_each_alike() -> None:
    caption = "A dog runs. It is 3.5 years old! Is it brown?"
    found = Counter(one_sentence(caption, 0.6, generator("sentence", 0, 0, sample, 0)) for sample in range(2000))
    assert set(found) == {caption, "A dog runs.", "It is 3.5 years old!", "Is it brown?"}
    for text, expected in {caption: 0.4, "A dog runs.": 0.2, "It is 3.5 years old!": 0.2, "Is it brown?": 0.2}.items():
        assert abs(found[text] / 2000 - expected) < 0.05
    assert {one_sentence("a dog", 1.0, generator("sentence", 0, 0, sample, 0)) for sample in range(20)} == {"a dog"}
