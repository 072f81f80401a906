"""Near duplicates, compared with comparing every pair."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipelines.prepare.duplicates import near_duplicates


@st.composite
def hashes(draw: st.DrawFn) -> list[int]:
    """64-bit hashes of which many are near one another: some bits of an earlier one are flipped."""
    values = [draw(st.integers(0, 2**64 - 1))]
    for _ in range(draw(st.integers(0, 25))):
        value = draw(st.sampled_from(values))
        for bit in draw(st.lists(st.integers(0, 63), max_size=20)):
            value ^= 1 << bit
        values.append(value)
    return values


@given(hashes(), st.integers(0, 16))
def test_near_duplicates_are_those_of_comparing_everything(values: list[int], bits: int) -> None:
    kept: list[int] = []
    expected = []
    for value in values:
        expected.append(any(bin(value ^ other).count("1") <= bits for other in kept))
        if not expected[-1]:
            kept.append(value)
    assert near_duplicates(np.asarray(values, dtype=np.uint64), bits).tolist() == expected


@given(hashes(), st.integers(0, 16), st.integers(0, 26))
def test_with_references_only_others_are_duplicates_and_only_of_these(values: list[int], bits: int, references: int) -> None:
    first = values[:references]
    near = [any(bin(value ^ other).count("1") <= bits for other in first) for value in values[references:]]
    assert near_duplicates(np.asarray(values, dtype=np.uint64), bits, references).tolist() == [False] * len(first) + near
