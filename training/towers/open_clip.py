"""Half of an open_clip model, with its projection: as a frozen encoder, or to start from."""

import difflib
import json
import tempfile
import zipfile
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipelines.dataset.tokenizer import TextTokenizer, load_tokenizer
from pipelines.io import hub
from pipelines.io.artifacts import resolve
from pipelines.program.errors import UserError
from pipelines.program.settings_base import digest
from training.towers.base import Tower, TowerSettings, freeze_unreached
from training.towers.image import ImageTower, ImageTowerSettings
from training.towers.long_text import with_positions
from training.towers.pixels import Pixels
from training.towers.text import STRETCH, TextTower, TextTowerSettings

# Sizes of the other half, which is built and discarded.
_SMALL_TEXT = {"context_length": 4, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1}
_SMALL_VISION = {"image_size": 8, "patch_size": 8, "width": 64, "layers": 1}


def _weights_remedy(published: Collection[str]) -> str:
    return f"give a path, or one of its tags {', '.join(published)}" if published else "give the path of its weights"


class _OpenClipSettings(TowerSettings):
    name: Literal["open_clip"]
    model: str = Field(description="open_clip's name of the model, such as ViT-B-32; needs raylign[open_clip]")
    weights: str | None = Field(
        None, description="open_clip's tag, such as laion2b_s34b_b79k, a path, or null for random weights"
    )

    def weights_name(self) -> str | None:
        return self.weights

    def check_source(self, key: str) -> None:
        self.config(key)
        if self.weights is None or resolve(self.weights, f"{key}.weights") is not None:
            return
        published = self._published()
        about = published.get(self.weights)
        if about is None:
            problem = f"'{self.weights}' is neither a file nor a tag of open_clip's {self.model}"
            raise UserError(f"{key}.weights", problem, _weights_remedy(published))
        name = f"open_clip's {self.model} of {self.weights}"
        if about.get("hf_hub"):
            hub.check_repository(about["hf_hub"].rpartition("/")[0], f"{key}.weights", name)
        elif about.get("url"):
            file = Path("~/.cache/clip").expanduser() / about["url"].rpartition("/")[2]
            hub.check_file(about["url"], file, f"{key}.weights", name)

    def identity(self, key: str) -> dict[str, Any]:
        self.config(key)
        return super().identity(key)

    def config(self, key: str) -> dict[str, Any]:
        """open_clip's description of the model. Raises `UserError` if it or the package is missing."""
        try:
            import open_clip
        except ImportError:
            problem = f"{self.model} needs open_clip, which is not installed"
            raise UserError(f"{key}.model", problem, "pip install 'raylign[open_clip]'") from None
        config = open_clip.get_model_config(self.model)
        if config is None:
            near = difflib.get_close_matches(self.model, open_clip.list_models(), n=4, cutoff=0.5)
            remedy = f"did you mean {' or '.join(near)}?" if near else "open_clip.list_models() lists all names"
            raise UserError(f"{key}.model", f"open_clip has no '{self.model}'", remedy)
        return config

    def load(self, key: str) -> nn.Module:
        """The whole model. Raises `UserError` if its weights are missing or do not fit."""
        import open_clip

        self.config(key)
        if self.weights is None:
            return open_clip.create_model(self.model, load_weights=False)
        path = resolve(self.weights, f"{key}.weights")
        published = self._published()
        variant = f"{self.model}-quickgelu"
        quick = path is None and self.weights in open_clip.list_pretrained_tags_by_model(variant)
        if quick and published.get(self.weights, {}).get("quick_gelu"):
            # open_clip only warns, and computes a different function from the one that was trained.
            problem = f"{self.model}, but its weights {self.weights} were trained with QuickGELU"
            raise UserError(f"{key}.model", problem, f"pass {key}.model={variant}")
        try:
            return open_clip.create_model(
                self.model,
                pretrained=str(path or self.weights),
                force_preprocess_cfg=None if path is None else self._preprocessing(path, published, key),
                **({"init_logit_bias": 0.0} if path is not None and has_bias(path) else {}),
            )
        except UserError:
            raise
        except Exception as error:  # the hub, torch and open_clip each raise their own errors
            why = " ".join(str(error).split())[:300]
            problem = f"'{self.weights}' cannot be loaded into open_clip's {self.model}: {why}"
            raise UserError(f"{key}.weights", problem, _weights_remedy(published)) from None

    def rebuilt(self, config: dict[str, Any]) -> Any:
        """A model with random weights from an open_clip config, whatever this installation has under the model's name."""
        import open_clip

        name = f"raylign-{digest(config)[:12]}"
        if name not in open_clip.list_models():
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / f"{name}.json"
                file.write_text(json.dumps(config), encoding="utf-8")
                open_clip.add_model_config(file)
        return open_clip.create_model(name, load_weights=False)

    def _published(self) -> dict[str, dict[str, Any]]:
        """open_clip's description of the model's published weights, by tag."""
        import open_clip

        return {tag: open_clip.get_pretrained_cfg(self.model, tag) for tag in open_clip.list_pretrained_tags_by_model(self.model)}

    def _preprocessing(self, path: Path, published: dict[str, dict[str, Any]], key: str) -> dict[str, Any] | None:
        """The preprocessing for a file of weights. open_clip itself would assume CLIP's.

        It is read from `open_clip_config.json` beside the file; without one, it is that of the model's published weights if all
        have the same.
        """
        names = ("mean", "std", "interpolation", "resize_mode", "fill_color")
        described = path.with_name("open_clip_config.json")
        if described.exists():
            try:
                config = json.loads(described.read_text(encoding="utf-8"))["preprocess_cfg"]
                return {name: config[name] for name in names if name in config}
            except (OSError, ValueError, KeyError, TypeError) as error:
                problem = f"{described} has no preprocess_cfg that can be read ({error})"
                raise UserError(f"{key}.weights", problem, "copy the file again, or delete it") from None
        configs = [{name: about[name] for name in names if name in about} for about in published.values()]
        if any(config != configs[0] for config in configs):
            raise UserError(
                f"{key}.weights",
                f"published weights of open_clip's {self.model} have different image preprocessing, and {path.name} does not "
                "say which is its own",
                f"put open_clip_config.json beside it, or pass one of the tags {', '.join(published)}",
            )
        return configs[0] if configs else None


def has_bias(path: Path) -> bool:
    """Whether a file of weights has SigLIP's bias, which open_clip loads only into a model that is built with one."""
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            return "logit_bias" in file.keys()  # noqa: SIM118  it is no mapping
    # The names are in it as they are; to unpickle them could run code.
    try:
        with zipfile.ZipFile(path) as archive:
            return any(b"logit_bias" in archive.read(name) for name in archive.namelist() if name.endswith("/data.pkl"))
    except zipfile.BadZipFile:  # of which open_clip tells, if it cannot read it either
        return False


class OpenClipImageSettings(_OpenClipSettings, ImageTowerSettings):
    """The image half of an open_clip model, with its projection."""

    def build(self, key: str = "image_tower") -> ImageTower:
        config = self.config(key)
        size = config["vision_cfg"]["image_size"]
        if size != self.image_size:
            problem = f"{self.image_size}, but open_clip's {self.model} takes {size} pixels"
            raise UserError(f"{key}.image_size", problem, f"pass {key}.image_size={size}")
        visual: Any = self.load(key).visual
        pixels = Pixels(visual.preprocess_cfg["mean"], visual.preprocess_cfg["std"])
        tower = self.tower(visual, pixels, f"open_clip's {self.model}", size, key)
        return tower.describe(**tower.about, config=config)

    def bare(self, about: dict[str, Any]) -> nn.Module:
        names = ("embed_dim", "vision_cfg", "quick_gelu")
        config = {name: value for name, value in about["config"].items() if name in names}
        return self.rebuilt(config | {"text_cfg": _SMALL_TEXT}).visual.eval()


class OpenClipTextSettings(_OpenClipSettings, TextTowerSettings):
    """The text half of an open_clip model, with its projection."""

    max_tokens: int = Field(77, ge=2, description="captions are cut to this many tokens")
    stretch_positions: bool = STRETCH

    def tokenizer(self, corpus: Callable[[], list[str]], key: str = "text_tower") -> TextTokenizer:
        text = self.config(key)["text_cfg"]
        if text.get("hf_model_name"):
            problem = f"the text half of open_clip's {self.model} is a model of transformers, which open_clip loads from the hub"
            raise UserError(f"{key}.model", problem, f"choose another model, or {key}.name=huggingface")
        theirs, context = text.get("hf_tokenizer_name"), text.get("context_length", 77)
        if self.max_tokens > context and not self.stretch_positions:
            problem = f"{self.max_tokens} is more than the {context} of open_clip's {self.model}"
            raise UserError(f"{key}.max_tokens", problem, f"pass {key}.max_tokens={context}, or {key}.stretch_positions=true")
        options = dict(text.get("tokenizer_kwargs") or {})
        clean = options.pop("clean", "whitespace" if theirs else "lower")
        if options:
            names = ", ".join(sorted(options))
            problem = f"the tokenizer of open_clip's {self.model} has the options {names}, which are not supported"
            raise UserError(f"{key}.model", problem, "choose another model")
        if not theirs:
            return TextTokenizer(_byte_pairs(), self.max_tokens, clean=clean)
        if self.max_tokens != context:
            problem = f"{self.max_tokens}, but open_clip's {self.model} reads its padding and was trained with {context} tokens"
            raise UserError(f"{key}.max_tokens", problem, f"pass {key}.max_tokens={context}")
        path = None if self.weights is None else resolve(self.weights, f"{key}.weights")
        beside = None if path is None else path if path.is_dir() else path.parent
        there = beside is not None and (beside / "tokenizer.json").is_file()
        found = load_tokenizer(str(beside) if there else theirs, context, f"{key}.model", context)
        return replace(found, reads_padding=True, clean=clean)

    def build(self, vocabulary_size: int, key: str = "text_tower") -> TextTower:
        config, model = self.config(key), self.load(key)
        context = config["text_cfg"].get("context_length", 77)
        if self.max_tokens > context:
            config = config | {"text_cfg": config["text_cfg"] | {"context_length": self.max_tokens}}
            more = self.rebuilt(config)
            with_positions(model, more, context)
            model = more
        return self._tower(model, config).describe(config=config)

    def again(self, about: dict[str, Any], vocabulary_size: int) -> Tower:
        config = about["config"]
        return self._tower(self.rebuilt(config | {"vision_cfg": _SMALL_VISION}), config).eval()

    def _tower(self, model: Any, config: dict[str, Any]) -> "_OpenClipText":
        return _OpenClipText(model, config["embed_dim"], config["text_cfg"].get("context_length", 77))


class _OpenClipText(TextTower):
    def __init__(self, model: Any, width: int, context: int):
        super().__init__()
        model.visual = model.logit_bias = None
        self.model, self.width, self.states_width, self._context = model, width, 0, context
        # CoCa's decoder, which writes captions, does not run.
        ids = torch.ones(1, context, dtype=torch.int64)
        freeze_unreached(model, lambda: self(ids, ids))

    def with_states(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        # Not reached by a run, which first asks its tokenizer for a mask token: CLIP's vocabulary has none.
        problem = "open_clip's text half has no states of single tokens, which masked words need"
        raise UserError("text_tower.name", problem, "pass objective.mlm=0, or choose another text tower")

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        # It gets the length and the zeros that it was trained with, since it may read its padding, such as the last token.
        return self.model.encode_text(F.pad(ids, (0, self._context - ids.shape[1])))


def _byte_pairs() -> str:
    """CLIP's vocabulary, which open_clip includes, as a `tokenizer.json` for cleaned texts. It pads with zeros."""
    from open_clip.tokenizer import SimpleTokenizer
    from tokenizers import Tokenizer
    from transformers import CLIPTokenizer

    bpe = SimpleTokenizer()
    start, end = "<start_of_text>", "<end_of_text>"
    merges = sorted(bpe.bpe_ranks, key=bpe.bpe_ranks.get)
    clip: Any = CLIPTokenizer(
        vocab=dict(bpe.encoder), merges=merges, bos_token=start, eos_token=end, unk_token=end, pad_token=end
    )
    tree = json.loads(clip.backend_tokenizer.to_str()) | {"normalizer": None}
    tokenizer = Tokenizer.from_str(json.dumps(tree))
    tokenizer.enable_padding(pad_id=0, pad_token=tokenizer.id_to_token(0))
    return tokenizer.to_str()
