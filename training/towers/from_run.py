"""Half of a dual encoder that raylign trained, tower and head: as a frozen encoder, or to start from."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, TypeAdapter
from torch import Tensor, nn

from pipelines.dataset.tokenizer import TextTokenizer
from pipelines.program.errors import UserError
from pipelines.program.path_keys import Place
from training.towers.base import Tower, TowerSettings
from training.towers.image import ImageTower, ImageTowerSettings
from training.towers.text import TextTower, TextTowerSettings

if TYPE_CHECKING:
    from training.checkpoint import Trained


class _RunSettings(TowerSettings):
    name: Literal["run"]
    path: Place = Field(description="a run such as runs/demo or s3://bucket/runs/demo, or one of its checkpoints")

    def weights_name(self) -> str | None:
        from training.checkpoint import find_checkpoint  # imported here, since it imports all towers

        return str(find_checkpoint(self.path).absolute())

    @property
    def pretrained(self) -> bool:
        return True

    def load(self) -> "Trained":
        """The whole dual encoder."""
        from training.checkpoint import find_checkpoint, load_encoder

        return load_encoder(find_checkpoint(self.path))


class RunImageSettings(_RunSettings, ImageTowerSettings):
    """The image half of a run, tower and head."""

    def build(self, key: str = "image_tower") -> ImageTower:
        run = self.load()
        size = run.settings.image_tower.image_size
        if size != self.image_size:
            problem = f"{self.image_size}, but {self.path} was trained with {size} pixels"
            raise UserError(f"{key}.image_size", problem, f"pass {key}.image_size={size}")
        assert isinstance(run.encoder.image_tower, ImageTower)
        settings = run.settings.image_tower.model_dump(mode="json")
        tower = self._half(run.encoder.image_tower, run.encoder.image_head, run.settings.embed_dim)
        head = run.settings.heads[0].model_dump(mode="json")
        return tower.describe(settings=settings, tower=run.encoder.image_tower.about, head=head, width=tower.width)

    def again(self, about: dict[str, Any], vocabulary_size: int) -> Tower:
        from training.towers import ImageTowerUnion

        settings: ImageTowerSettings = TypeAdapter(ImageTowerUnion).validate_python(about["settings"])
        tower = settings.rebuild(about["tower"], 0)
        assert isinstance(tower, ImageTower)
        return self._half(tower, _head(about, tower.width), about["width"]).eval()

    def _half(self, tower: ImageTower, head: nn.Module, width: int) -> "_RunImage":
        return _RunImage(tower, head, width, self.batch_norm == "frozen")


class RunTextSettings(_RunSettings, TextTowerSettings):
    """The text half of a run, tower and head."""

    def tokenizer(self, corpus: Callable[[], list[str]], key: str = "text_tower") -> TextTokenizer:
        tokenizer = self.load().tokenizer
        if tokenizer.max_tokens != self.max_tokens:
            problem = f"{self.max_tokens}, but {self.path} was trained with {tokenizer.max_tokens}"
            raise UserError(f"{key}.max_tokens", problem, f"pass {key}.max_tokens={tokenizer.max_tokens}")
        return tokenizer

    def build(self, vocabulary_size: int, key: str = "text_tower") -> TextTower:
        run = self.load()
        assert run.encoder.text_tower is not None
        settings = run.settings.text_tower.model_dump(mode="json")
        tower = _RunText(run.encoder.text_tower, run.encoder.text_head, run.settings.embed_dim)
        head = run.settings.heads[1].model_dump(mode="json")
        return tower.describe(settings=settings, tower=run.encoder.text_tower.about, head=head, width=tower.width)

    def again(self, about: dict[str, Any], vocabulary_size: int) -> Tower:
        from training.towers import TextTowerUnion

        settings: TextTowerSettings = TypeAdapter(TextTowerUnion).validate_python(about["settings"])
        tower = settings.rebuild(about["tower"], vocabulary_size)
        assert isinstance(tower, TextTower)
        return _RunText(tower, _head(about, tower.width), about["width"]).eval()


def innermost(settings: Any, tower: Any, head: nn.Module) -> tuple[Any, Any, list[nn.Module]]:
    """The tower inside a tower of a run, at any depth: its settings, the tower, and all heads that follow it, the first first."""
    heads = [head]
    while isinstance(tower, _RunImage | _RunText):
        union = _union(tower)
        settings, heads = TypeAdapter(union).validate_python(tower.about["settings"]), [tower.head, *heads]
        tower = tower.tower
    return settings, tower, heads


def _union(tower: Tower) -> Any:
    from training.towers import ImageTowerUnion, TextTowerUnion

    return ImageTowerUnion if isinstance(tower, _RunImage) else TextTowerUnion


def _head(about: dict[str, Any], width: int) -> nn.Module:
    """A run's head, without weights."""
    from training.encoder import HeadUnion  # which imports towers

    settings: Any = TypeAdapter(HeadUnion).validate_python(about["head"])
    return settings.build(width, about["width"])


class _RunImage(ImageTower):
    def __init__(self, tower: ImageTower, head: nn.Module, width: int, freeze_batch_norm: bool):
        nn.Module.__init__(self)
        self.tower, self.head, self.width, self._freeze_batch_norm = tower, head, width, freeze_batch_norm

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.tower(images))

    def with_states(self, images: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        rows, states = self.tower.with_states(images, hidden)
        return self.head(rows), states


class _RunText(TextTower):
    def __init__(self, tower: TextTower, head: nn.Module, width: int):
        super().__init__()
        self.tower, self.head, self.width, self.states_width = tower, head, width, tower.states_width

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.head(self.tower(ids, mask))  # open_clip's text half has rows and no states

    def with_states(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        rows, states = self.tower.with_states(ids, mask)
        return self.head(rows), states
