"""Stores frozen encoders' features before any run: `python -m pipelines CONFIG.yaml` for a config with the key `dataset`.

A run that names the same encoder uses them, as `frozen_encoders.image_encoder`, `frozen_encoders.text_encoder` or a locked tower.
"""

from pathlib import Path

from pydantic import Field, model_validator

from pipelines.dataset.order import Order
from pipelines.dataset.prepared import Prepared
from pipelines.dataset.views import Augment
from pipelines.features.frozen_encoders import FrozenFeatures
from pipelines.features.knn_cache import find_neighbours
from pipelines.features.pool import Pool
from pipelines.program import cluster
from pipelines.program.display import Display
from pipelines.program.errors import UserError
from pipelines.program.nodes import Selector
from pipelines.program.path_keys import Place
from pipelines.program.ray_elastic import all_nodes
from pipelines.program.settings_base import Settings
from training.dry_run import check_towers
from training.saved_towers import frozen
from training.stored_features import stored_text_features, stored_view_features
from training.towers import ImageTowerUnion, TextTowerUnion


class FeatureSettings(Settings):
    """Which features of a prepared dataset's images and captions to compute."""

    dataset: Place = Field(
        description="prepared dataset; features are stored in its folder, on a disk that all nodes share or in a store"
    )
    image_encoder: ImageTowerUnion | None = Field(None, description="encoder of all images; needs pretrained weights")
    text_encoder: TextTowerUnion | None = Field(None, description="encoder of all captions; needs pretrained weights")
    views: int | None = Field(
        None,
        ge=1,
        description="of as many random views of each image, for frozen_encoders.views of runs; null: of the centre crop",
    )
    augment: Augment = Field(Augment(), description="of the views, as data.augment of those runs")
    neighbours: bool = Field(
        False,
        description="also find all neighbours in the training split, for runs whose frozen_encoders.support covers it",
    )
    actors: int | None = Field(None, ge=1, description="copies of an encoder; null: one per CPU, or one per GPU")
    use_gpu: bool = Field(False, description="one GPU per copy")
    node_labels: Selector = Field({}, description="Ray labels of the cluster's nodes on which copies run, such as {role: train}")

    @model_validator(mode="after")
    def _something_to_do(self) -> "FeatureSettings":
        if self.image_encoder is None and self.text_encoder is None:
            raise ValueError("image_encoder: neither it nor text_encoder is named; name one of them, or both")
        if self.neighbours and (self.image_encoder is None or self.text_encoder is None):
            raise ValueError("neighbours: needs both image_encoder and text_encoder; name both, or pass neighbours=false")
        if self.views is not None and (self.image_encoder is None or self.neighbours):
            raise ValueError(
                f"views: {self.views}, but they are of image_encoder's features, and neighbours are found by the centre crop's; "
                "name image_encoder, pass neighbours=false, or leave views out"
            )
        return self


def compute_features(settings: FeatureSettings, display: Display) -> list[Path | str]:
    """Compute missing features, check existing ones, and return their folders. Raises `UserError`."""
    for key, encoder in (("image_encoder", settings.image_encoder), ("text_encoder", settings.text_encoder)):
        if encoder is not None:
            encoder.check_source(key)
    try:
        prepared = Prepared.open(settings.dataset)
    except UserError as error:
        raise error.under("dataset", instead_of="data.path") from None
    # These raise if an encoder has no weights.
    image = None if settings.image_encoder is None else frozen(settings.image_encoder, "image_encoder", None)
    text = None if settings.text_encoder is None else frozen(settings.text_encoder, "text_encoder", None)
    Pool(settings.actors or 1, settings.use_gpu).check()
    check_towers([tower for tower in (image, text) if tower is not None], None)
    cluster.start(display.verbose)
    pool = Pool(_actors(settings), settings.use_gpu, labels=settings.node_labels)
    stored: list[Path | str] = []
    if image is not None:
        views = None if settings.views is None else (settings.augment, settings.views)
        for place in stored_view_features(prepared, image, views, pool, display):
            stored.append(place)
            display.line(f"features of the images: {place}")
    if text is not None:
        stored += stored_text_features(prepared, [prepared.texts()], text, text.tokenizer(list), pool, display)
        display.line(f"features of the captions: {stored[-1]}")
    if settings.neighbours:
        order = Order(prepared, "train", None, seed=0, global_batch_size=1)
        stored.append(find_neighbours(FrozenFeatures(order, stored[0], stored[1], 1), prepared, pool, display))
        display.line(f"neighbours: {stored[-1]}")
    return stored


def _actors(settings: FeatureSettings) -> int:
    """As many as configured, else as many as fit into the cluster."""
    if settings.actors is not None:
        return settings.actors
    kind, key = ("GPU", "use_gpu") if settings.use_gpu else ("CPU", "actors")
    fitting = int(sum(node.resources.get(kind, 0) for node in all_nodes()))
    if fitting < 1:
        other = "use_gpu=false, or " if settings.use_gpu else ""
        raise UserError(key, f"the cluster has no {kind}", f"pass {other}actors=N on a cluster that grows")
    return fitting
