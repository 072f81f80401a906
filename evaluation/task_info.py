"""What a task says about itself: its names, and for each kind of score the title, the unit and which direction is better."""

from dataclasses import dataclass, replace
from typing import Literal

Better = Literal["max", "min"]


@dataclass(frozen=True)
class Measure:
    """A kind of score, by how its name begins: all of it, or up to and with the @ that a number follows."""

    name: str
    title: str  # {} is the number after the @
    about: str = ""  # what it is the percentage of
    unit: str = "%"
    better: Better = "max"
    clip_benchmark: str = ""  # CLIP_benchmark's name, where it has one; {} as in the title


@dataclass(frozen=True)
class TaskInfo:
    """Name, titles and units of a task."""

    name: str  # in results and their folders: CLIP_benchmark's name where it has one
    path: str  # in configs, and at the start of its scores' paths
    title: str
    measures: tuple[Measure, ...]  # those with titles of their own
    unit: str = "%"  # of its main score
    needs: str = ""  # of the data, to be asked for by name in `tasks`; "": its own key of the config asks for it
    by_default: bool = False

    def measure(self, score: str) -> Measure:
        """Of a score by its name in results; a score without a title of its own is titled by its name."""
        exact = next((measure for measure in self.measures if measure.name == score), None)
        if exact is not None:
            return exact
        name, at, k = score.partition("@")
        for measure in self.measures:
            if at and measure.name == name + at:
                return replace(
                    measure, name=score, title=measure.title.format(k), clip_benchmark=measure.clip_benchmark.format(k)
                )
        plain = next((measure for measure in self.measures if measure.name == name), Measure(name, name.replace("_", " ")))
        return replace(plain, name=score, title=f"{plain.title} at {k}", clip_benchmark="") if at else plain
