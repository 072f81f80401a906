"""`raylign.testing.check_objective`: it finds each law broken, and nothing where none is."""

import pytest

from raylign.testing import check_objective
from tests.raylign import own_objective
from training.objectives.psd import PsdSettings


@pytest.mark.parametrize("settings", [own_objective.Plain(scale=3), PsdSettings(temperature=0.2)], ids=["own", "psd"])
def test_what_keeps_the_laws_passes(settings: own_objective.Plain) -> None:
    check_objective(settings)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("OwnRowsOnly", "2 workers are not one"),
        ("OwnStateOnly", "2 workers are not one"),
        ("SumsOverRows", "2 workers are not one"),
        ("WritesInForward", "`forward` gives another loss the second time"),
        ("Forgets", "after a checkpoint it goes on otherwise"),
    ],
)
def test_what_breaks_one_is_told_which(name: str, told: str) -> None:
    with pytest.raises(AssertionError, match=told):
        check_objective(getattr(own_objective, name)(scale=3))
