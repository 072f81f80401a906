"""Captions and groups that repeat: splits, training and scores mean little if most pairs have the same caption."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_SHARE = 0.05  # share of rows with one caption: in a batch of 128, each of them meets five others that are equally correct
_LEAST = 3  # fewer rows than this may be chance
_SHOWN = 60  # characters of a caption


@dataclass(frozen=True)
class Repeats:
    """Repetition among the rows that are kept, or were scanned."""

    rows: int
    captions: int  # different ones
    groups: int
    commonest: str  # the caption that most rows have
    with_commonest: int  # rows
    largest_group: int  # rows

    def warnings(self, splits: Mapping[str, int], shares: Mapping[str, float] | None = None) -> list[str]:
        """A warning for each repetition that makes scores meaningless.

        Args:
            splits: rows of each, train among them.
            shares: of each but train, as they were asked for.
        """
        if not self.rows:
            return []
        found = []
        text, share = quoted(self.commonest), self.with_commonest / self.rows
        if self.captions == 1:
            found.append(f"all {self.rows:,} rows have one caption, {text}: there is nothing to tell images apart by")
        elif share > _SHARE and self.with_commonest >= _LEAST:
            found.append(
                f"{self.with_commonest:,} of {self.rows:,} rows ({share:.0%}) have the same caption, {text}: training takes them "
                "for different, and scoring finds each of them right for all their images; leave it out where it says nothing"
            )
        shares = shares or {}
        for name in [name for name, count in splits.items() if count == 0]:
            if name == "train" and sum(shares.values()) > 1 - 1e-9:
                continue  # data for evaluation only, as asked for
            found.append(
                f"split {name} is empty: the {self.rows:,} rows are {_count(self.groups, 'group')}"
                + (f" (rows of one caption are one, unless source.group says otherwise; the largest has {self.largest_group:,})")
                + ", and no group is torn apart"
            )
        return found


def warnings_of(manifest: Mapping[str, Any]) -> list[str]:
    """Warnings for a prepared dataset; none if an earlier version prepared it."""
    return Repeats(**manifest["repeats"]).warnings(manifest["splits"], manifest["split_shares"]) if "repeats" in manifest else []


def quoted(text: str) -> str:
    """The beginning of a caption, in one line."""
    text = " ".join(text.split())
    return f"'{text if len(text) <= _SHOWN else text[:_SHOWN].rstrip() + '...'}'"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
