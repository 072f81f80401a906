"""Objectives, one file each. The union of their settings is the registry: a new objective is one file and one member.

Users' own objectives need neither: a config names the settings class, as `mypackage.mymodule:MySettings`.
"""

from typing import Annotated

from pydantic import Field

from pipelines.program.own_class import OrOwn
from training.objectives.a_clip_ping import AClipPingSettings
from training.objectives.albef import AlbefSettings
from training.objectives.base import ForeignObjective, ObjectiveSettings
from training.objectives.captions import CaptionsSettings
from training.objectives.clip import ClipSettings
from training.objectives.clip_ping import ClipPingSettings
from training.objectives.cyclip import CyClipSettings
from training.objectives.dcl import DclSettings
from training.objectives.declip import DeclipSettings
from training.objectives.distill import DistillSettings
from training.objectives.fastclip import FastClipSettings
from training.objectives.isogclr import ISogClrSettings
from training.objectives.matryoshka import MatryoshkaSettings
from training.objectives.mcd import McdSettings
from training.objectives.negclip import NegClipSettings
from training.objectives.onlineclr import OnlineClrSettings
from training.objectives.psd import PsdSettings
from training.objectives.siglip import SigLipSettings
from training.objectives.siglip2 import SigLip2Settings
from training.objectives.slip import SlipSettings
from training.objectives.sogclr import SogClrSettings
from training.objectives.uniclip import UniClipSettings
from training.objectives.vicreg import VicRegSettings
from training.objectives.weighted import WeightedSettings

ObjectiveUnion = Annotated[
    ClipSettings
    | SigLipSettings
    | SigLip2Settings
    | PsdSettings
    | SogClrSettings
    | ISogClrSettings
    | FastClipSettings
    | CyClipSettings
    | VicRegSettings
    | OnlineClrSettings
    | AlbefSettings
    | SlipSettings
    | UniClipSettings
    | ClipPingSettings
    | AClipPingSettings
    | McdSettings
    | DeclipSettings
    | DistillSettings
    | DclSettings
    | MatryoshkaSettings
    | NegClipSettings
    | WeightedSettings
    | CaptionsSettings,
    Field(discriminator="name"),
    OrOwn(ObjectiveSettings, ForeignObjective),
]
