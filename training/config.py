"""The config of `python -m training CONFIG.yaml`, composed of parts whose settings are defined next to what they build."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from evaluation.suite import Labels, Positions, SuiteSettings
from pipelines.dataset.views import Augment
from pipelines.features.frozen_encoders import Search
from pipelines.program.config_errors import plain
from pipelines.program.nodes import Bundle, Selector
from pipelines.program.path_keys import Place
from pipelines.program.settings_base import Settings
from training.encoder import AugmentedHead, HeadSettings, HeadUnion, LinearHead
from training.learning_rate import ScheduleSettings
from training.moving_average import AverageSettings
from training.objectives import ObjectiveUnion
from training.objectives.base import ForeignObjective
from training.objectives.clip import ClipSettings
from training.optimizer import OptimizerSettings
from training.start import StartUnion, filled
from training.towers import ImageTowerSettings, ImageTowerUnion, TextTowerSettings, TextTowerUnion


class DataSettings(Settings):
    """The prepared dataset."""

    renamed: ClassVar[dict[str, str]] = {"share": "fraction"}
    path: Place = Field(description="prepared dataset, the output of python -m pipelines; s3:// and gs:// too")
    split: str = Field("train", description="split to train on")
    split_seed: int | None = Field(None, ge=0, description="draw other held-out groups than the prepared ones")
    validation: float | None = Field(
        None, gt=0, lt=1, description="hold out this share of the training groups as one more split, named validation"
    )
    fraction: float = Field(
        1.0,
        gt=0,
        le=1,
        description="train on this share of the split's groups; drawn by seed, and a smaller share is a subset of a larger one",
    )
    max_unusable_rate: float = Field(
        0.1, ge=0, le=1, description="for indexed data: stop when a larger share of the rows read so far is unusable"
    )
    sentences: float = Field(
        0.0, ge=0, le=1, description="chance that a caption is cut to one of its sentences, drawn anew in each epoch"
    )
    augment: Augment | None = Field(Augment(), description="random views of training images; null: the centre crop")


class TeacherSettings(Settings):
    """Both halves of one more dual encoder."""

    image_encoder: ImageTowerUnion = Field(description="its image half")
    text_encoder: TextTowerUnion = Field(description="its text half")


class FrozenEncoderSettings(Settings):
    """Frozen encoders whose features an objective learns from, and where their nearest neighbours are searched."""

    image_encoder: ImageTowerUnion | None = Field(
        None,
        description="its features of images, computed once or in the step; null: the image tower with the weights it starts from",
    )
    text_encoder: TextTowerUnion | None = Field(None, description="the same, of captions; null: the text tower as it starts")
    others: tuple[TeacherSettings, ...] = Field(
        (), description="more dual encoders that teach together with the first: a cosine of theirs is the mean over all"
    )
    views: int | None = Field(
        None,
        ge=1,
        description="the run sees as many random views of an image in all, one an epoch, and the features are those of the view; "
        "null: other views in each epoch, and features of the centre crop",
    )
    support: int = Field(65536, ge=1, description="training samples among which neighbours are searched, redrawn every epoch")
    search: Search = Field(
        "exact", description="approximate: with an index, for support sets larger than memory; needs raylign[ann]"
    )

    @field_validator("search")
    @classmethod
    def _has_index(cls, value: Search) -> Search:
        if value == "approximate" and find_spec("faiss") is None:
            raise ValueError("faiss is not installed; pip install 'raylign[ann]', or leave frozen_encoders.search exact")
        return value


def _number_or_range(value: object) -> object:
    """Raises `ValueError` for what is neither a number of workers nor the least and the most of them."""
    numbers = value if isinstance(value, list | tuple) and len(value) == 2 else [value]
    if not all(type(number) is int and number >= 1 for number in numbers):
        raise ValueError(f"{plain(value)} is no number of workers; pass one, such as 2, or [least, most], such as [1, 8]")
    if sorted(numbers) != [*numbers]:
        raise ValueError(f"{plain(value)} has the least number of workers last; pass {sorted(numbers)}")
    return value


Workers = Annotated[int | tuple[int, int], BeforeValidator(_number_or_range)]


class ResourceSettings(Settings):
    """What a run needs of the cluster. It is not part of the run's identity: a run may resume with other resources."""

    num_workers: Workers = Field(
        1,
        description="Ray Train workers, which share each global batch; [least, most]: as many as the cluster has room for, fewer "
        "after a lost node and more after the next checkpoint",
    )
    use_gpu: bool = Field(False, description="one GPU per worker")
    cpus_per_worker: float = Field(1, gt=0, description="CPUs reserved per worker; 0.5 is possible")
    data_cpus: float = Field(
        1, ge=1, description="CPUs reserved for reading and decoding; if the run starts its own Ray, all that are left"
    )
    worker_labels: Selector = Field(
        {}, description="Ray labels of the nodes on which workers run, such as {role: train} or {ray.io/market-type: '!spot'}"
    )
    data_labels: Selector = Field({}, description="Ray labels of the nodes on which tasks read and decode, such as {role: data}")
    driver_labels: Selector = Field(
        {"ray.io/market-type": "!spot"},
        description="Ray labels of the node on which the program itself runs; a job's --entrypoint-label-selector chooses it",
    )
    autoscale: bool | None = Field(
        None,
        description="wait for nodes instead of refusing what does not fit now; null: where ray up or KubeRay started the cluster",
    )
    max_failures: int = Field(
        3,
        ge=-1,
        description="restarts from the last checkpoint after failures of workers; -1: no limit. A lost node does not count, and "
        "the same failure three times at the same step ends the run",
    )
    patience_minutes: float | None = Field(
        9, gt=0, description="after so long without progress, say which worker hangs and where, and restart it; null: never"
    )

    @property
    def worker(self) -> Bundle:
        """What one worker needs."""
        gpu = {"GPU": 1.0} if self.use_gpu else {}
        return Bundle({"CPU": round(self.cpus_per_worker, 4)} | gpu, self.worker_labels)  # Ray's rounding

    @property
    def least_workers(self) -> int:
        """The number of workers, or the smallest of a range."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def most_workers(self) -> int:
        """The number of workers, or the largest of a range."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]


class CheckpointSettings(Settings):
    """When the whole state is saved, and which checkpoints are kept. It is always saved after an evaluation and at the end."""

    every_steps: int | None = Field(None, ge=1, description="save every N optimizer steps")
    every_minutes: float | None = Field(10, gt=0, description="save every N minutes")
    keep: int = Field(2, ge=1, description="keep the newest N checkpoints")
    best: str | None = Field(None, description="keep the checkpoint with the best value of this metric in best/")
    mode: Literal["max", "min"] = Field("max", description="whether larger or smaller values of `best` are better")


class OtherData(Settings):
    """One more prepared dataset to score, on the split with the same name as the run's own."""

    path: Place = Field(description="prepared dataset, the output of python -m pipelines")
    retrieval: bool = Field(True, description="score retrieval; false if captions only name the class")
    labels: Labels | None = Field(None, description="label columns for zero-shot classification; all by default")
    templates: tuple[str, ...] | None = Field(None, description="prompts for each class; null: the run's own")


class EvaluationSettings(SuiteSettings):
    """Scoring the held-out split during training."""

    renamed: ClassVar[dict[str, str]] = {"also": "extra_datasets"}
    recall_at: Positions = Field((1, 5, 10), min_length=1, description="k of R@k")
    extra_datasets: tuple[OtherData, ...] = Field((), description="further datasets to score, such as MS-COCO and ImageNet")
    test_split: str | None = Field(
        None, description="also score the checkpoint chosen by checkpoint.best on this split, once, at the end"
    )
    every_epochs: int = Field(1, ge=1, description="score every N epochs, and always at the end")
    batch_size: int = Field(256, ge=1, description="images or texts that one worker embeds at a time")


class TrainSettings(Settings):
    """All settings of one run."""

    renamed: ClassVar[dict[str, str]] = {"guides": "frozen_encoders"}
    name: str = Field(description="the run writes under storage/name", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    storage: Place = Field(
        Path("runs"), description="folder of all runs, or a URI such as s3://bucket/runs; on a cluster, one that all nodes reach"
    )
    data: DataSettings
    seed: int = Field(0, ge=0, description="seed of initial weights, order, views and dropout")
    start: StartUnion | None = Field(
        None, description="a whole dual encoder to begin from: fills in towers, heads and embed_dim where absent"
    )
    image_tower: ImageTowerUnion = Field(description="the image half")
    text_tower: TextTowerUnion = Field(description="the text half")
    image_head: HeadUnion | None = Field(
        None,
        description="from image features to the joint space; null: linear, or augmented if the objective needs it",
    )
    text_head: HeadUnion = Field(LinearHead(name="linear"), description="from text features to the joint space")
    embed_dim: int = Field(256, ge=1, description="width of the joint space")
    objective: ObjectiveUnion = Field(
        ClipSettings(), description="what training minimizes: one of these, or module:Class of your own"
    )
    frozen_encoders: FrozenEncoderSettings | None = Field(
        None, description="frozen encoders for an objective that learns from some; null: both towers as they start"
    )
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    epochs: int = Field(ge=1, description="passes over the training split")
    max_minutes: float | None = Field(None, gt=0, description="end at the first evaluation after N minutes of training")
    global_batch_size: int = Field(ge=2, description="pairs of one optimizer step, over all workers")
    accumulate: int = Field(1, ge=1, description="micro-batches per step; the loss still sees the whole batch")
    clip_norm: float | None = Field(None, gt=0, description="maximum norm of the gradient")
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="precision of the encoder; losses are always fp32")
    ema: AverageSettings | None = Field(
        None, description="a moving average of the weights, which is what is evaluated, exported and opened; null: the weights"
    )
    compile: bool = Field(False, description="torch.compile the encoder")
    evaluation: EvaluationSettings = EvaluationSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    resources: ResourceSettings = ResourceSettings()
    log_every: int = Field(10, ge=1, description="steps between two lines of metrics.jsonl")
    tensorboard: bool | None = Field(None, description="write event files; null: where tensorboard is installed")
    loggers: tuple[Literal["wandb", "mlflow", "trackio"], ...] = Field(
        (), description="also send metrics.jsonl to these while the run goes on; each needs its package: docs/trackers.md"
    )
    overwrite: bool = Field(False, description="delete an earlier run of this name")

    @field_validator("loggers")
    @classmethod
    def _different(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if twice := next((name for name in value if value.count(name) > 1), None):
            raise ValueError(f"{twice!r} is listed twice; remove one of them")
        return value

    @model_validator(mode="before")
    @classmethod
    def _filled_by_start(cls, value: Any) -> Any:
        return filled(value)

    @model_validator(mode="after")
    def _start_gives_what_the_objective_takes(self) -> "TrainSettings":
        objective = type(self.objective)
        takes = "temperature" in objective.model_fields or issubclass(objective, ForeignObjective)  # read as data
        if self.start is not None and self.start.temperature and not takes:
            raise ValueError(
                f"start.temperature: objective.name={self.objective.name} has no temperature; pass start.temperature=false"
            )
        return self

    @model_validator(mode="after")
    def _batch_fills_all_parts(self) -> "TrainSettings":
        workers, parts = self.resources.most_workers, self.accumulate
        if self.global_batch_size < workers * parts:
            raise ValueError(
                f"global_batch_size: {self.global_batch_size} is less than resources.num_workers x accumulate = {workers} x "
                f"{parts}, and each part of a step needs a pair; pass at least global_batch_size={workers * parts}"
            )
        return self

    @model_validator(mode="after")
    def _objective_has_what_it_needs(self) -> "TrainSettings":
        objective, augment = self.objective, self.data.augment
        if self.global_batch_size < objective.least_batch:
            raise ValueError(
                f"global_batch_size: {self.global_batch_size} is too small for objective.name={objective.name}, whose head "
                f"normalises over the batch; pass at least global_batch_size={objective.least_batch}"
            )
        if self.data.sentences and self.text_tower.mode == "locked":
            raise ValueError(
                f"data.sentences: {plain(self.data.sentences)}, but text_tower.mode=locked has features of whole captions only; "
                "leave it out, or pass text_tower.mode=trainable"
            )
        encoders = self.frozen_encoders or FrozenEncoderSettings()
        if encoders.others and objective.needs.frozen_encoders != "own":
            raise ValueError(
                f"frozen_encoders.others: {len(encoders.others)}, but objective.name={objective.name} learns from features of a "
                "single dual encoder; leave it out, or pass objective.name=distill and objective.live=false"
            )
        views = encoders.views
        looked_up = objective.needs.frozen_encoders == "own" and self.image_tower.mode != "locked" and augment is not None
        if views is not None and not looked_up:
            raise ValueError(
                f"frozen_encoders.views: {views}, but views repeat only where stored features of a teacher are of what the image "
                "tower sees; leave it out, or pass objective.name=distill, objective.live=false, an image tower that is not "
                "locked, and data.augment"
            )
        objective.needs.check(
            objective.name,
            image_mode=self.image_tower.mode,
            text_mode=self.text_tower.mode,
            image_head=self.heads[0].name,
            encoders_named=self.frozen_encoders is not None or self.starts_trained,
            rand_augment=augment is not None and augment.rand_augment is not None,
        )
        return self

    @model_validator(mode="after")
    def _test_split_is_apart(self) -> "TrainSettings":
        test, best = self.evaluation.test_split, self.checkpoint.best
        if test is not None and best in (None, "loss", "held_out_loss"):
            raise ValueError(
                f"evaluation.test_split: no metric chooses the checkpoint to score on '{test}'; set checkpoint.best to a metric "
                f"of split '{self.evaluation.split}', such as retrieval/NAME/mean_recall"
            )
        if test is not None and test in (self.evaluation.split, self.data.split):
            use = "chooses its checkpoint" if test == self.evaluation.split else "trains"
            raise ValueError(f"evaluation.test_split: the run {use} on '{test}'; name a split that it uses for nothing else")
        return self

    @model_validator(mode="after")
    def _device_has_the_precision(self) -> "TrainSettings":
        if self.precision == "fp16" and not self.resources.use_gpu:
            raise ValueError("precision: fp16 needs resources.use_gpu=true; bf16 and fp32 run on CPUs")
        return self

    @property
    def heads(self) -> tuple[HeadSettings, HeadSettings]:
        """The image head and the text head."""
        image = AugmentedHead(name="augmented") if self.objective.needs.codes else LinearHead(name="linear")
        return self.image_head or image, self.text_head

    @property
    def starts_trained(self) -> bool:
        """Whether it starts from a dual encoder: pretrained towers, and heads that add nothing."""
        towers = self.image_tower.pretrained and self.text_tower.pretrained
        return towers and all(head.name == "identity" for head in self.heads)

    @property
    def frozen_encoder_pair(self) -> tuple[ImageTowerSettings, TextTowerSettings]:
        """The frozen encoders of images and captions: those named in the config, else the towers with their initial weights."""
        named = self.frozen_encoders or FrozenEncoderSettings()
        return named.image_encoder or self.image_tower.locked(), named.text_encoder or self.text_tower.locked()

    def identity(self) -> dict:
        """The settings that identify a run. The others (resources, log, checkpoints) may change when it resumes."""
        free = {"name", "storage", "resources", "checkpoint", "log_every", "tensorboard", "loggers", "overwrite"}
        chosen_by = [self.checkpoint.best, self.checkpoint.mode] if self.evaluation.test_split else None
        tree = self.model_dump(mode="json", exclude=free) | {"chosen by": chosen_by}
        if self.start is not None and self.start.temperature:  # which the plan reads from the start
            tree["objective"] = {k: v for k, v in tree["objective"].items() if k not in ("temperature", "bias")}
        return tree
