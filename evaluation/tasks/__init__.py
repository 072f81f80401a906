"""What models are asked: each task says which rows it needs and makes a result of them; one file a kind."""

from evaluation.tasks.base import Task
from evaluation.tasks.probes import FewShot, LinearProbe
from evaluation.tasks.retrieval import Retrieval
from evaluation.tasks.shifts import Corruption, EffectiveRobustness
from evaluation.tasks.sugarcrepe import SugarCrepe
from evaluation.tasks.zero_shot import ZeroShot

TASKS: tuple[type[Task], ...] = (ZeroShot, LinearProbe, FewShot, Retrieval, SugarCrepe, EffectiveRobustness, Corruption)
"""All of them, in the order of pages."""
