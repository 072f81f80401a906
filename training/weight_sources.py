"""Checks first of all whether pretrained weights are available: it needs nothing but the config."""

from training.config import TrainSettings
from training.towers.base import TowerSettings


def check_sources(settings: TrainSettings) -> None:
    """Raises `UserError` if pretrained weights are neither on this machine nor available for download."""
    if settings.start is not None:
        settings.start.check_source()
    towers: dict[str, TowerSettings] = {"image_tower": settings.image_tower, "text_tower": settings.text_tower}
    if settings.objective.needs.frozen_encoders != "no":
        keys = ("frozen_encoders.image_encoder", "frozen_encoders.text_encoder")
        towers |= dict(zip(keys, settings.frozen_encoder_pair, strict=True))
    for key, tower in towers.items():
        tower.check_source(key)
        if tower.mode == "locked":
            tower.identity(key)
