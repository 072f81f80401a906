"""`Batch` and `Needs`: what a step of training receives, and what an objective asks for.

`Needs` sits on the objective's config class, so the driver knows which columns to compute before any network exists, and
the pipeline computes exactly those.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:  # importing torch would cost each data task three seconds
    from torch import Tensor

    from pipelines.dataset.strong_views import StrongViews


class Batch(TypedDict, total=False):
    """Columns of one worker's batch of b samples; only the requested ones are present."""

    image: Tensor  # [b, 3, H, W] uint8
    strong: Tensor  # [b, V, 3, H, W] uint8, strong views
    whole: Tensor  # [b, 3, H, W] uint8, another strong view
    codes: Tensor  # [b, 1 + V, 13] float32, augmentation codes of the plain and the strong views
    text: Tensor  # [b, L] int64 token ids
    text_mask: Tensor  # [b, L] int64, 1 for a token and 0 for padding
    other_text: Tensor  # [b, L] int64, the reworded caption
    other_mask: Tensor  # [b, L] int64
    masked_text: Tensor  # [b, L] int64 token ids, some of them masked
    masked_labels: Tensor  # [b, L] int64, the masked tokens, -100 elsewhere
    more_text: Tensor  # [b, K, L] int64 token ids, K other captions of the sample
    more_mask: Tensor  # [b, K, L] int64
    more_id: Tensor  # [b, K] int64, as text_id
    label_text: Tensor  # [b, K, L] int64 token ids of K label columns; of the caption, where the sample has no such label
    label_mask: Tensor  # [b, K, L] int64
    label_there: Tensor  # [b, K] bool, whether the sample has such a label
    numbers: Tensor  # [b, K] float32, of K label columns
    image_features: Tensor  # [b, F] float32, output of a locked image tower
    text_features: Tensor  # [b, F] float32, output of a locked text tower
    more_features: Tensor  # [b, K, F] float32, the same for other captions of the sample
    sample_id: Tensor  # [b] int64 in [0, num_samples)
    draw: Tensor  # [b] int64, random for each epoch and sample
    image_id: Tensor  # [b] int64, equal for equal images
    text_id: Tensor  # [b] int64, equal for equal captions
    neighbour_ids: Tensor  # [b, 3] int64: the sample itself, and those nearest to its image and to its caption, -1 for none
    frozen_image_features: Tensor  # [b, 1 or 3, F] float32 unit rows of a frozen encoder, of the sample's image, or of all three
    frozen_text_features: Tensor  # [b, 1 or 3, G] float32 unit rows of another, of captions
    frozen_text: Tensor  # [b, L'] int64 token ids of the frozen text encoder, where it runs in the step
    frozen_mask: Tensor  # [b, L'] int64
    teacher_image: Tensor  # [b, D] float32 unit rows, from the teacher
    teacher_text: Tensor  # [b, D] float32 unit rows, from the teacher
    teacher_strong: Tensor  # [b, V, D] float32 unit rows, from the teacher, of strong views
    teacher_whole: Tensor  # [b, D] float32, the teacher's projections of `whole`
    teacher_states: Tensor  # [b, P, S] float32, the teacher's states of places of `whole`
    hidden: Tensor  # [b, P] bool, places of `whole` that the student does not see


@dataclass(frozen=True)
class Needs:
    """What an objective reads in addition to the embeddings."""

    ids: bool = False  # image_id, text_id
    sample_id: bool = False
    draw: bool = False  # a random number for each sample, the same on any worker
    tokens: bool = False  # of the caption, whether or not the text tower reads them
    image_states: bool = False  # the image tower's states of places, for the plain view
    strong: StrongViews | None = None
    codes: bool = False  # of all views
    # Frozen encoders' features: the sample's, stored; its neighbours' too; or computed in the step from the student's view.
    frozen_encoders: Literal["no", "own", "neighbours", "live"] = "no"
    one_space: bool = False  # the frozen encoders are a dual encoder
    masked: Literal["no", "apart", "shared"] = "no"  # masked words: in a copy of the caption, or in the caption itself
    other_words: bool = False
    captions: int = 1  # of a sample at once; the others are `more`
    texts: tuple[str, ...] = ()  # label columns of the dataset that are read as captions
    numbers: tuple[str, ...] = ()  # label columns of the dataset that are read as numbers, not below 0

    def check(
        self, objective: str, *, image_mode: str, text_mode: str, image_head: str, encoders_named: bool, rand_augment: bool
    ) -> None:
        """Raises `ValueError`, `key: problem; remedy`, if a run cannot provide what `objective` reads.

        Args:
            image_mode, text_mode: modes of the run's towers.
            encoders_named: whether the config names its frozen encoders, or the run starts from a dual encoder.
        """
        untrained = ("locked", "frozen")
        if self.strong is not None and image_mode in untrained:
            raise ValueError(
                f"objective.name: {objective} teaches the image tower by strong views of images, and "
                f"image_tower.mode={image_mode} does not train it; choose trainable, or another objective"
            )
        if self.image_states and image_mode == "locked":
            raise ValueError(
                f"objective.name: {objective} reads what the image tower tells of each place of an image, and image_tower.mode="
                "locked stores one row of features of an image; choose trainable or frozen, or another objective"
            )
        if self.masked != "no" and text_mode in untrained:
            raise ValueError(
                f"objective.mlm: {objective} hides words from the text tower, and text_tower.mode={text_mode} "
                "does not train it; pass objective.mlm=0, or text_tower.mode=trainable"
            )
        if self.other_words and text_mode == "locked":
            raise ValueError(
                f"objective.name: {objective} shows the text tower captions in other words, whose features text_tower.mode="
                "locked does not have; choose trainable, or another objective"
            )
        if self.texts and text_mode == "locked":
            raise ValueError(
                f"objective.name: {objective} shows the text tower texts of label columns, whose features text_tower.mode="
                "locked does not have; choose trainable or frozen, or another objective"
            )
        if self.one_space and not encoders_named:
            raise ValueError(
                f"frozen_encoders: objective.name={objective} learns from a teacher; name its halves as "
                "frozen_encoders.image_encoder and frozen_encoders.text_encoder, such as {name: run, path: runs/demo} or "
                "{name: open_clip, model: ViT-B-32, weights: TAG}, or start from a dual encoder"
            )
        if self.frozen_encoders == "live" and "locked" in (image_mode, text_mode):
            raise ValueError(
                f"objective.name: {objective} runs frozen encoders on what the towers see, and a locked tower sees nothing; "
                "choose trainable or frozen for both, or look up stored features: clip-ping, or objective.live=false"
            )
        if self.codes and image_head != "augmented":
            raise ValueError(
                f"image_head.name: objective.name={objective} tells the head what was done to a view, which "
                f"{image_head} does not read; leave image_head out, or choose augmented"
            )
        if self.codes and rand_augment:
            raise ValueError(
                f"data.augment.rand_augment: objective.name={objective} tells the head what was done to a view, and its "
                "code has no place for RandAugment; leave that out, or pass objective.codes=false"
            )


def columns(needs: Needs, image_locked: bool, text_locked: bool) -> set[str]:
    """The columns of a batch: those that the towers and the objective read, and no others."""
    names = {"image_features"} if image_locked else {"image"}
    names |= {"text_features"} if text_locked else {"text", "text_mask"}
    if needs.ids:
        names |= {"image_id", "text_id"}
    if needs.sample_id:
        names.add("sample_id")
    if needs.strong is not None:
        names |= ({"strong"} if needs.strong.count else set()) | ({"whole"} if needs.strong.whole else set())
    if needs.draw:
        names.add("draw")
    if needs.tokens:
        names |= {"text", "text_mask"}
    if needs.codes:
        names.add("codes")
    if needs.masked != "no":
        names |= {"masked_labels"} | ({"masked_text"} if needs.masked == "apart" else set())
    if needs.other_words:
        names |= {"other_text", "other_mask"}
    if needs.captions > 1:
        names |= {"more_features"} if text_locked else {"more_text", "more_mask"}
        names |= {"more_id"} if needs.ids else set()
    if needs.texts:
        names |= {"label_text", "label_mask", "label_there"}
    if needs.numbers:
        names.add("numbers")
    if needs.frozen_encoders == "live":
        names |= {"frozen_text", "frozen_mask"}
    elif needs.frozen_encoders != "no":
        names |= {"frozen_image_features", "frozen_text_features"}
    if needs.frozen_encoders == "neighbours":
        names.add("neighbour_ids")
    return names
