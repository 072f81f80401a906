"""Features of locked towers and frozen encoders, stored with a dataset: computed where they are missing, else checked."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from pipelines.dataset.order import Order
from pipelines.dataset.prepared import Prepared
from pipelines.dataset.tokenizer import TextTokenizer
from pipelines.dataset.views import Augment
from pipelines.features import feature_store
from pipelines.features.frozen_encoders import FrozenFeatures
from pipelines.features.knn_cache import with_neighbours
from pipelines.features.pool import Pool
from pipelines.program.display import Display
from training.config import FrozenEncoderSettings
from training.saved_towers import Frozen
from training.towers import ImageFeatures, ImageTowerSettings, TextFeatures


def stored_image_features(prepared: Prepared, tower: Frozen, pool: Pool, display: Display) -> Path | str:
    """The features of all images. Raises `UserError` for damaged ones."""
    return stored_view_features(prepared, tower, None, pool, display)[0]


def stored_view_features(
    prepared: Prepared, tower: Frozen, views: tuple[Augment, int] | None, pool: Pool, display: Display
) -> list[Path | str]:
    """The features of each of several random views of all images; None: of the centre crop. Raises `UserError` as above."""
    settings = tower.settings
    assert isinstance(settings, ImageTowerSettings)
    size, identity = settings.image_size, tower.identity
    return feature_store.stored_view_features(prepared, size, ImageFeatures, (tower,), identity, views, pool, display)


def stored_text_features(
    prepared: Prepared,
    texts: Sequence[Sequence[str] | pa.ChunkedArray],
    tower: Frozen,
    tokenizer: TextTokenizer,
    pool: Pool,
    display: Display,
) -> list[Path | str]:
    """The features of each list of texts. Raises `UserError` for damaged ones."""
    identity = tower.identity | {"tokenizer": tokenizer.identity}
    return feature_store.stored_text_features(prepared, texts, TextFeatures, (tower, tokenizer), identity, pool, display)


def frozen_features_of(
    settings: FrozenEncoderSettings,
    augment: Augment | None,
    order: Order,
    pairs: Sequence[tuple[Frozen, Frozen]],
    pool: Pool,
    display: Display,
) -> FrozenFeatures:
    """The features of a run's frozen encoders, with stored neighbours if there are any. Raises `UserError` for damaged ones.

    Args:
        augment: of the run's views, for those that repeat.
        pairs: image and text encoder, first those whose neighbours are searched.
    """
    prepared, found = order.prepared, list[FrozenFeatures]()
    repeated = None if settings.views is None or augment is None else (augment, settings.views)
    for image, text in pairs:
        views = stored_view_features(prepared, image, repeated, pool, display)
        (texts,) = stored_text_features(prepared, [prepared.texts()], text, text.tokenizer(list), pool, display)
        kept = tuple(views) if repeated else ()
        found.append(FrozenFeatures(order, views[0], texts, settings.support, settings.search, views=kept))
    return with_neighbours(replace(found[0], others=tuple(found[1:])), prepared)
