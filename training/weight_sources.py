"""Whether pretrained weights are available, checked first: nothing but the config has to be imported for it."""

from training.config import GuideSettings, TrainSettings
from training.towers.base import TowerSettings


def check_sources(settings: TrainSettings) -> None:
    """Raises `UserError` if pretrained weights are neither on this machine nor available. Needs no data and no cluster."""
    towers: dict[str, TowerSettings] = {"image_tower": settings.image_tower, "text_tower": settings.text_tower}
    if settings.objective.needs.guides != "no":
        guides = settings.frozen_encoders or GuideSettings()
        towers |= {
            "frozen_encoders.image_encoder": guides.image_encoder,
            "frozen_encoders.text_encoder": guides.text_encoder,
        }
    for key, tower in towers.items():
        tower.check_source(key)
        if tower.mode == "locked":
            tower.identity(key)
