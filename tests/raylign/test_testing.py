"""`raylign.testing.check_objective` finds each broken law, and accepts objectives that obey all."""

import pytest

from raylign.testing import check_objective
from tests.raylign import own_objective
from training.objectives.ops.caption_decoder import DecoderSettings
from training.objectives.ops.own_teacher import OwnTeacherSettings
from training.objectives.psd import PsdSettings
from training.objectives.siglip2 import SigLip2Settings

# Two of three steps have its views; it reads states, tokens and draws.
LATE = SigLip2Settings(
    temperature=0.2,
    decoder=DecoderSettings(width=4, layers=1, heads=2),
    teacher=OwnTeacherSettings(begin=0.125, parts=2, prototypes=6, hidden=4, bottleneck=3, teacher_temperature=0.2),
)


@pytest.mark.parametrize(
    "settings",
    [own_objective.Plain(scale=3), PsdSettings(temperature=0.2), own_objective.Many(scale=3), LATE],
    ids=["own", "psd", "many", "siglip2"],
)
def test_what_keeps_the_laws_passes(settings: own_objective.Plain) -> None:
    check_objective(settings)


@pytest.mark.parametrize(
    ("name", "law"),
    [
        ("OwnRowsOnly", "2 workers"),
        ("OwnStateOnly", "2 workers"),
        ("SumsOverRows", "2 workers"),
        ("EqualShares", "2 workers"),
        ("WritesInForward", "`forward`"),
        ("Forgets", "checkpoint"),
    ],
)
def test_the_law_that_is_broken_is_named(name: str, law: str) -> None:
    with pytest.raises(AssertionError, match=f"^{name}: .*{law}"):
        check_objective(getattr(own_objective, name)(scale=3))
