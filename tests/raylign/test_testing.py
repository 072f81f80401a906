"""`raylign.testing.check_objective` finds each broken law, and accepts objectives that obey all."""

import pytest

from raylign.testing import check_objective
from tests.raylign import own_objective
from training.objectives.psd import PsdSettings


@pytest.mark.parametrize(
    "settings",
    [own_objective.Plain(scale=3), PsdSettings(temperature=0.2), own_objective.Many(scale=3)],
    ids=["own", "psd", "many"],
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
