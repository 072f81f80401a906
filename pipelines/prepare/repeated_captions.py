"""Captions and groups that repeat: splits, training and scores mean little if most pairs have the same caption."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_SHARE = 0.05  # share of rows with one caption: in a batch of 128, each of them meets five others that are equally correct
_LEAST = 3  # rows; fewer may be chance
_SHOWN = 60  # characters of a caption


@dataclass(frozen=True)
class Repeats:
    """Repetition among the rows that were kept or scanned."""

    rows: int
    captions: int  # distinct
    groups: int
    commonest: str  # the most common caption
    with_commonest: int  # rows that have it
    largest_group: int  # rows

    def warnings(self, splits: Mapping[str, int], shares: Mapping[str, float] | None = None) -> list[str]:
        """A warning for each repetition that makes scores meaningless.

        Args:
            splits: rows of each split, including train.
            shares: the configured share of each split but train.
        """
        if not self.rows:
            return []
        warnings = shared_caption(self.rows, self.captions, self.commonest, self.with_commonest)
        shares = shares or {}
        for name in [name for name, count in splits.items() if count == 0]:
            if name == "train" and sum(shares.values()) > 1 - 1e-9:
                continue  # data for evaluation only, as configured
            warnings.append(
                f"split {name} is empty: the {self.rows:,} rows form {_count(self.groups, 'group')}, the largest of "
                f"{self.largest_group:,} rows, and a group stays in one split; rows with the same caption are a group unless "
                "source.group is set"
            )
        return warnings


def shared_caption(rows: int, captions: int, commonest: str, with_commonest: int) -> list[str]:
    """A warning if many rows have the same caption; `captions`: number of distinct ones."""
    text, share = quoted(commonest), with_commonest / rows
    if captions == 1:
        return [f"all {rows:,} rows have the same caption, {text}: nothing can be learnt from it"]
    if share <= _SHARE or with_commonest < _LEAST:
        return []
    return [
        f"{with_commonest:,} of {rows:,} rows ({share:.0%}) have the same caption, {text}: training treats them as different, "
        "and scoring counts each as right for all their images; leave them out if it says nothing"
    ]


def warnings_of(manifest: Mapping[str, Any]) -> list[str]:
    """Warnings for a prepared dataset; none if an earlier version prepared it."""
    return Repeats(**manifest["repeats"]).warnings(manifest["splits"], manifest["split_shares"]) if "repeats" in manifest else []


def quoted(text: str) -> str:
    """The beginning of a caption, in one line."""
    text = " ".join(text.split())
    return f"'{text if len(text) <= _SHOWN else text[:_SHOWN].rstrip() + '...'}'"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
