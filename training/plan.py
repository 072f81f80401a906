"""The plan of a run: everything that the workers need and the driver determines before any of them starts."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc
import torch

from evaluation.suite import HeldOut
from pipelines.dataset.batch import columns
from pipelines.dataset.order import Order
from pipelines.dataset.prepared import Prepared
from pipelines.dataset.stream import Stream
from pipelines.dataset.tokenizer import TextTokenizer
from pipelines.features import feature_store
from pipelines.features.rows_by_id import feature_rows
from pipelines.io.retry import is_remote
from pipelines.program.code_version import code_version
from pipelines.program.display import Display
from pipelines.program.settings_base import digest
from training.config import FrozenEncoderSettings, TeacherSettings, TrainSettings
from training.data import TrainData, open_data
from training.encoder import DualEncoder, build_encoder
from training.objectives.base import Objective, Task
from training.saved_towers import About, Frozen, frozen, keep, tokenizer_of, towers_of
from training.start import with_temperature
from training.stored_features import frozen_features_of, stored_image_features, stored_text_features
from training.teacher import FrozenEncoders, Teacher
from training.towers.base import TowerSettings
from training.towers.image_states import states_width

_BLOCK = 1 << 16  # rows whose captions are read at a time
_ENCODERS = ("frozen_encoders.image_encoder", "frozen_encoders.text_encoder")


@dataclass(frozen=True)
class Scored:
    """One held-out split, and the sources of its images and texts."""

    data: HeldOut
    images: Stream
    text_features: Path | str | None  # features of all captions by text_id, if the text tower is locked
    prompt_features: Path | str | None  # features of all prompts, if the text tower is locked
    file: str  # in the run's folder, for its embeddings: held_out.npz for the run's own split


@dataclass(frozen=True)
class Plan:
    """Everything a worker needs; picklable, and the same on every worker."""

    settings: TrainSettings
    order: Order
    stream: Stream  # training batches
    scored: tuple[Scored, ...]  # the run's own held-out split, and those of further datasets
    tokenizer: TextTokenizer
    code_version: str
    test: Scored | None = None  # the split on which the best checkpoint is scored at the end
    frozen: tuple[Frozen, ...] = ()  # towers that are not in checkpoints: locked ones and frozen encoders
    towers: tuple[About | None, About | None] = (None, None)  # architectures of both towers, if the run resumes

    @property
    def held_out(self) -> HeldOut:
        """The run's own held-out split."""
        return self.scored[0].data

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.order.steps_per_epoch * self.settings.epochs

    @property
    def uses_tasks(self) -> bool:
        """Whether tasks read images or captions for the workers, for training or for scoring."""
        scored = [*self.scored, *([self.test] if self.test else [])]
        return self.stream.uses_tasks or any(split.images.uses_tasks for split in scored)

    def task(self, encoder: DualEncoder, frozen: FrozenEncoders | None = None) -> Task:
        """What the objective and the teacher are told about the run."""
        manifest, settings, tower = self.stream.prepared.manifest, self.settings, encoder.image_tower
        width = feature_rows(self.stream.image_features).shape[1] if tower is None else tower.width
        encoders = frozen or self.stream.frozen_features
        places = settings.objective.needs.image_states
        return Task(
            num_images=manifest["num_images"],
            num_texts=manifest["num_texts"],
            embed_dim=settings.embed_dim,
            image_width=width,
            steps_per_epoch=self.order.steps_per_epoch,
            total_steps=self.total_steps,
            seed=settings.seed,
            states_width=encoder.text_tower.states_width if encoder.text_tower else 0,
            image_states_width=states_width(tower, settings.image_tower.image_size) if places else 0,
            vocabulary_size=self.tokenizer.vocabulary_size,
            frozen_widths=encoders.widths if encoders else (0, 0),
        )

    def build(self, checkpoint: Path | None = None) -> tuple[DualEncoder, Objective, Teacher]:
        """Networks with initial weights, which depend on the seed alone. `checkpoint`: build the towers that it describes."""
        settings = self.settings
        torch.manual_seed(settings.seed)
        encoder = build_encoder(
            settings.image_tower,
            settings.text_tower,
            settings.heads,
            settings.embed_dim,
            (
                feature_rows(self.stream.image_features).shape[1] if self.stream.image_features else None,
                feature_rows(self.stream.text_features).shape[1] if self.stream.text_features else None,
            ),
            self.tokenizer.vocabulary_size,
            self.towers if checkpoint is None else towers_of(checkpoint),
            settings.objective.needs.image_states,
        )
        live = self._live() if settings.objective.needs.frozen_encoders == "live" else None
        task = self.task(encoder, live)
        return encoder, settings.objective.build(task), live or settings.objective.build_teacher(encoder, task)

    def _live(self) -> FrozenEncoders:
        """Frozen encoders that run in the step."""
        tokenizer = self.stream.frozen_tokenizer
        assert tokenizer is not None
        towers = {tower.key: tower for tower in self.frozen}
        first, second = (towers[key] for key in _ENCODERS)
        image, text = first.build(), second.build(tokenizer.vocabulary_size)
        widths, size = (image.width, text.width), self.settings.frozen_encoder_pair[0].image_size
        return FrozenEncoders(image, text, widths, size, digest([first.identity, second.identity]))


def plan_of(
    settings: TrainSettings,
    pool: feature_store.Pool,
    display: Display,
    run: Path | None = None,
    checkpoint: Path | None = None,
) -> Plan:
    """From settings to a plan; arguments and errors as of `open_data` and `make_plan`."""
    return make_plan(open_data(settings), pool, display, run, checkpoint)


def needs_features(settings: TrainSettings) -> bool:
    """Whether features are computed before training, by the cluster."""
    modes = settings.image_tower.mode, settings.text_tower.mode
    return "locked" in modes or settings.objective.needs.frozen_encoders in ("own", "neighbours")


def make_plan(
    data: TrainData,
    pool: feature_store.Pool,
    display: Display,
    run: Path | None = None,
    checkpoint: Path | None = None,
) -> Plan:
    """The plan of a run: its tokenizer, the stored features of its locked towers, its streams.

    Args:
        run: the run's folder, whose copies of towers are read instead of the weights that the settings name.
        checkpoint: from which the run resumes.
    """
    settings, prepared, order = with_temperature(data.settings, checkpoint), data.prepared, data.order
    needs = settings.objective.needs
    towers = frozen_towers(settings, run)
    tokenizer = _tokenizer(settings, prepared, order, towers.get("text_tower"), checkpoint)
    if needs.masked != "no":
        tokenizer.mask_id  # noqa: B018  raises if there is none, before any features are computed

    def scored_of(dataset: Prepared, split: HeldOut, file: str) -> Scored:
        locked_image, locked_text = (towers.get(key) for key in ("image_tower", "text_tower"))
        images, texts, prompts = None, None, None
        if locked_image is not None:
            images = stored_image_features(dataset, locked_image, pool, display)
        if locked_text is not None:
            lists = [dataset.texts() if split.texts else split.texts, split.prompts]
            texts, prompts = stored_text_features(dataset, lists, locked_text, tokenizer, pool, display)
        stream = Stream(
            prepared=dataset,
            columns=frozenset({"image" if images is None else "image_features"}),
            image_size=settings.image_tower.image_size,
            image_features=images,
        )
        return Scored(split, stream, texts, prompts, file)

    scored = [
        scored_of(dataset, split, f"held_out-{split.dataset}.npz" if i else "held_out.npz")
        for i, (dataset, split) in enumerate(data.held_out)
    ]
    own = scored[0]
    frozen_features = None
    if needs.frozen_encoders in ("own", "neighbours"):
        encoders = settings.frozen_encoders or FrozenEncoderSettings()
        pairs = [(towers[image], towers[text]) for image, text in (_ENCODERS, *_others(settings))]
        frozen_features = frozen_features_of(encoders, settings.data.augment, order, pairs, pool, display)
    stream = Stream(
        prepared=prepared,
        columns=frozenset(columns(needs, own.images.image_features is not None, own.text_features is not None)),
        seed=settings.seed,
        image_size=settings.image_tower.image_size,
        augment=settings.data.augment,
        repeated=None if settings.frozen_encoders is None else settings.frozen_encoders.views,
        sentences=settings.data.sentences,
        strong=needs.strong,
        strong_from=0 if needs.strong is None else needs.strong.first_step(order.steps_per_epoch * settings.epochs),
        captions=needs.captions,
        texts=needs.texts,
        numbers=needs.numbers,
        frozen_features=frozen_features,
        frozen_tokenizer=_frozen_tokenizer(settings, towers),
        tokenizer=tokenizer,
        image_features=own.images.image_features,
        text_features=own.text_features,
    )
    return Plan(
        settings=settings,
        order=order,
        stream=stream,
        scored=tuple(scored),
        tokenizer=tokenizer,
        code_version=code_version(),
        test=None if data.test is None else scored_of(prepared, data.test, "test.npz"),
        frozen=tuple(towers.values()),
        towers=towers_of(checkpoint),
    )


def keep_towers(plan: Plan, run: Path) -> None:
    """Save in the run's folder the towers that are not in its checkpoints, so that it opens on another machine."""
    keep(plan.frozen, run, tower_cache(plan.stream.prepared))


def tower_cache(prepared: Prepared) -> Path | None:
    """The folder of a dataset in which its runs share copies of towers; None if the dataset is not on a disk."""
    folder = None if is_remote(prepared.path) else feature_store.folder_of(prepared)
    return folder if isinstance(folder, Path) else None


def frozen_towers(settings: TrainSettings, run: Path | None) -> dict[str, Frozen]:
    """Towers that are not in checkpoints, by their keys. Raises `UserError` for one without pretrained weights."""
    sides = {"image_tower": settings.image_tower, "text_tower": settings.text_tower}
    towers: dict[str, TowerSettings] = {key: tower for key, tower in sides.items() if tower.mode == "locked"}
    if settings.objective.needs.frozen_encoders != "no":
        towers |= dict(zip(_ENCODERS, settings.frozen_encoder_pair, strict=True))
        for keys, pair in _others(settings).items():
            towers |= dict(zip(keys, (pair.image_encoder, pair.text_encoder), strict=True))
    return {key: frozen(tower, key, run) for key, tower in towers.items()}


def _others(settings: TrainSettings) -> dict[tuple[str, str], TeacherSettings]:
    """Dual encoders that teach together with `_ENCODERS`, by the keys of their halves."""
    others = () if settings.frozen_encoders is None else settings.frozen_encoders.others
    places = (f"frozen_encoders.others.{i}" for i in range(len(others)))
    return {(f"{at}.image_encoder", f"{at}.text_encoder"): pair for at, pair in zip(places, others, strict=True)}


def pretrained_towers(settings: TrainSettings, run: Path | None = None, checkpoint: Path | None = None) -> dict[str, Frozen]:
    """Frozen towers, and those that a run without a checkpoint trains from pretrained weights, by their keys."""
    sides = {"image_tower": settings.image_tower, "text_tower": settings.text_tower} if checkpoint is None else {}
    trained = {key: frozen(tower, key, None) for key, tower in sides.items() if tower.weights_name() is not None}
    return trained | frozen_towers(settings, run)


def _frozen_tokenizer(settings: TrainSettings, towers: dict[str, Frozen]) -> TextTokenizer | None:
    """The tokenizer of a frozen text encoder that runs in the step."""
    return towers[_ENCODERS[1]].tokenizer(list) if settings.objective.needs.frozen_encoders == "live" else None


def _tokenizer(
    settings: TrainSettings, prepared: Prepared, order: Order, locked: Frozen | None, checkpoint: Path | None
) -> TextTokenizer:
    """The checkpoint's tokenizer if the run resumes, else the text tower's own, or one trained on the training captions.

    These are read in the order of sample ids.
    """
    if checkpoint is not None:
        return tokenizer_of(checkpoint, settings.text_tower.max_tokens)

    def corpus() -> list[str]:
        ids, texts = order.ids, list[str]()
        for start in range(0, len(ids), _BLOCK):
            captions = prepared.rows(ids[start : start + _BLOCK], ("captions",))["captions"]
            texts += pc.list_flatten(captions).to_pylist()
        return texts

    return (locked or settings.text_tower).tokenizer(corpus)
