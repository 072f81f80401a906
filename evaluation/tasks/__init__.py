"""The tasks, one a file: each says which rows it needs, turns them into a result, and shows its results on the page."""

from evaluation.tasks.base import Task
from evaluation.tasks.corruption import Corruption
from evaluation.tasks.few_shot import FewShot
from evaluation.tasks.linear_probe import LinearProbe
from evaluation.tasks.retrieval import Retrieval
from evaluation.tasks.robustness import EffectiveRobustness
from evaluation.tasks.sugarcrepe import SugarCrepe
from evaluation.tasks.zero_shot import ZeroShot

TASKS: tuple[type[Task], ...] = (ZeroShot, LinearProbe, FewShot, Retrieval, SugarCrepe, EffectiveRobustness, Corruption)
"""In the order of pages."""
