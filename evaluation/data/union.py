"""The union of all readers of evaluation data: `name` in an entry of a config's `data` selects one."""

from typing import Annotated

from pydantic import Field

from evaluation.data.captions import CaptionsData
from evaluation.data.folder import FolderData
from evaluation.data.function import FunctionData
from evaluation.data.prepared import PreparedData
from evaluation.data.sugarcrepe import SugarCrepeData
from evaluation.data.torchvision import TorchvisionData
from evaluation.data.webdataset import WebdatasetData

DataUnion = Annotated[
    PreparedData | WebdatasetData | FolderData | CaptionsData | SugarCrepeData | TorchvisionData | FunctionData,
    Field(discriminator="name"),
]
