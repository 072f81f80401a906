"""Every argument of open_clip's training program (3.3), and what becomes of it here. docs/open_clip.md has the same table."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

Kind = Literal["flag", "text", "whole", "number", "numbers", "pairs"]
Becomes = Literal["keys", "same", "none"]


class Argument(NamedTuple):
    """`becomes`: keys, of a config; same: nothing has to be said; none: it has no equal."""

    name: str
    kind: Kind
    default: str | int | float | None
    becomes: Becomes
    about: str  # the keys, or why it is the same, or what there is instead


_START, _DISTILL = "`start`", "`objective: {name: distill}`, `frozen_encoders`"
_BY_EVALUATION = "`evaluation.every_epochs`"
_GATHER = "features are gathered with their gradients, and no worker holds the whole matrix of logits"
_PIXELS = "a tower scales pixels as its weights were trained with"
_OWN_VIEWS = "training crops at random, evaluation takes the centre, both bicubic"
_RAY = "Ray Train connects the workers"

ARGUMENTS = (
    Argument("--train-data", "text", None, "keys", "`source` of prepare.yaml, `data.path`"),
    Argument("--train-data-upsampling-factors", "text", None, "keys", "`source.sources[].weight` of prepare.yaml"),
    Argument("--val-data", "text", None, "keys", "`source` of prepare-val.yaml, `evaluation.extra_datasets`"),
    Argument("--train-num-samples", "whole", None, "same", "rows are counted when they are prepared; a share: `data.fraction`"),
    Argument("--val-num-samples", "whole", None, "same", "rows are counted when they are prepared"),
    Argument("--dataset-type", "text", "auto", "keys", "`source.name` of prepare.yaml"),
    Argument("--dataset-resampled", "flag", None, "none", "an epoch shows each row once, in an order drawn by seed"),
    Argument("--csv-separator", "text", "\t", "keys", "`source.separator` of prepare.yaml"),
    Argument("--csv-img-key", "text", "filepath", "keys", "`source.image` of prepare.yaml"),
    Argument("--csv-caption-key", "text", "title", "keys", "`source.caption` of prepare.yaml"),
    Argument("--imagenet-val", "text", None, "keys", "`source` of prepare-imagenet.yaml, `evaluation.extra_datasets`"),
    Argument(
        "--imagenet-v2", "text", None, "none", "prepare it like prepare-imagenet.yaml, and add it to evaluation.extra_datasets"
    ),
    Argument("--cache-dir", "text", None, "none", "set HF_HOME, where hubs' files are kept"),
    Argument("--logs", "text", "./logs/", "keys", "`storage`"),
    Argument("--log-local", "flag", None, "same", "one process writes a run's files"),
    Argument("--name", "text", None, "keys", "`name`"),
    Argument("--workers", "whole", 4, "keys", "`resources.data_cpus`, of all workers together"),
    Argument("--batch-size", "whole", 64, "keys", "`global_batch_size`, of all workers and parts together"),
    Argument("--epochs", "whole", 32, "keys", "`epochs`"),
    Argument("--epochs-cooldown", "whole", None, "none", "there is no cooldown"),
    Argument("--lr", "number", 5e-4, "keys", "`optimizer.lr`"),
    Argument("--beta1", "number", None, "keys", "`optimizer.options.betas`"),
    Argument("--beta2", "number", None, "keys", "`optimizer.options.betas`"),
    Argument("--eps", "number", None, "keys", "`optimizer.options.eps`"),
    Argument("--wd", "number", 0.2, "keys", "`optimizer.weight_decay`"),
    Argument("--momentum", "number", None, "keys", "`optimizer.momentum`"),
    Argument("--warmup", "whole", 10000, "keys", "`schedule.warmup_steps`"),
    Argument("--opt", "text", "adamw", "keys", "`optimizer.name`"),
    Argument("--use-bn-sync", "flag", None, "same", "BatchNorm is always over the rows of all workers"),
    Argument("--skip-scheduler", "flag", None, "keys", "`schedule: {name: constant}`"),
    Argument("--lr-scheduler", "text", "cosine", "keys", "`schedule.name`"),
    Argument("--lr-cooldown-end", "number", 0.0, "none", "there is no cooldown"),
    Argument("--lr-cooldown-power", "number", 1.0, "none", "there is no cooldown"),
    Argument(
        "--save-frequency",
        "whole",
        1,
        "none",
        "the state is saved after each evaluation and every checkpoint.every_minutes, and the newest checkpoint.keep stay",
    ),
    Argument("--save-most-recent", "flag", None, "same", "the newest checkpoints always stay"),
    Argument("--zeroshot-frequency", "whole", 2, "keys", _BY_EVALUATION),
    Argument("--val-frequency", "whole", 1, "keys", _BY_EVALUATION),
    Argument(
        "--resume", "text", None, "keys", "latest: the same command resumes; a file: `start.weights`, without its optimizer"
    ),
    Argument("--precision", "text", "amp", "keys", "`precision`; weights are always fp32"),
    Argument("--model", "text", "RN50", "keys", "`start.model`"),
    Argument("--pretrained", "text", "", "keys", "`start.weights`, with their temperature"),
    Argument("--pretrained-image", "flag", None, "none", "`image_tower: {name: timm, weights: hub}` is such a tower"),
    Argument("--lock-image", "flag", None, "keys", "`image_tower.mode: frozen`; locked computes features once, of centre crops"),
    Argument("--lock-image-unlocked-groups", "whole", 0, "keys", "`image_tower.frozen_blocks`, of open_clip's own transformers"),
    Argument("--lock-image-freeze-bn-stats", "flag", None, "same", "a frozen tower keeps its statistics"),
    Argument("--image-mean", "numbers", None, "none", _PIXELS),
    Argument("--image-std", "numbers", None, "none", _PIXELS),
    Argument("--image-interpolation", "text", None, "none", _OWN_VIEWS),
    Argument("--image-resize-mode", "text", None, "none", _OWN_VIEWS),
    Argument("--aug-cfg", "pairs", None, "keys", "`data.augment` (scale, ratio); other entries have no equal"),
    Argument("--grad-checkpointing", "flag", None, "keys", "`image_tower.recompute`, `text_tower.recompute`"),
    Argument("--local-loss", "flag", None, "same", _GATHER),
    Argument("--gather-with-grad", "flag", None, "same", _GATHER),
    Argument("--force-context-length", "whole", None, "keys", "`text_tower.max_tokens`, if the model reads as many"),
    Argument("--force-image-size", "numbers", None, "none", "a half of an open_clip model takes images of its own size"),
    Argument("--force-quick-gelu", "flag", None, "keys", "`start.model`, with -quickgelu, where open_clip has that model"),
    Argument("--force-patch-dropout", "number", None, "none", "a half of an open_clip model has the patch dropout of its config"),
    Argument("--force-custom-text", "flag", None, "same", "it names the class of the text half, which computes the same"),
    Argument("--torchscript", "flag", None, "none", "compile: true is torch.compile"),
    Argument("--torchcompile", "flag", None, "keys", "`compile`"),
    Argument("--trace", "flag", None, "none", "it only evaluates: raylign evaluate"),
    Argument("--accum-freq", "whole", 1, "keys", "`accumulate`, and `global_batch_size`"),
    Argument("--device", "text", "cuda", "keys", "`resources.use_gpu`"),
    Argument("--dist-url", "text", None, "same", _RAY),
    Argument("--dist-backend", "text", None, "same", _RAY),
    Argument("--report-to", "text", "", "keys", "`tensorboard`, `loggers`"),
    Argument("--wandb-notes", "text", "", "none", "set WANDB_NOTES"),
    Argument("--wandb-project-name", "text", "open-clip", "none", "set WANDB_PROJECT"),
    Argument("--debug", "flag", None, "none", "raylign train CONFIG.yaml --verbose"),
    Argument("--copy-codebase", "flag", None, "none", "each checkpoint has a digest of the code"),
    Argument("--horovod", "flag", None, "same", _RAY),
    Argument("--ddp-static-graph", "flag", None, "same", "a matter of speed"),
    Argument("--no-set-device-rank", "flag", None, "same", _RAY),
    Argument("--seed", "whole", 0, "keys", "`seed`"),
    Argument("--grad-clip-norm", "number", None, "keys", "`clip_norm`"),
    Argument("--lock-text", "flag", None, "keys", "`text_tower.mode: frozen`"),
    Argument("--lock-text-unlocked-layers", "whole", 0, "keys", "`text_tower.frozen_blocks`"),
    Argument("--lock-text-freeze-layer-norm", "flag", None, "same", "norms are frozen as other weights are"),
    Argument("--log-every-n-steps", "whole", 100, "keys", "`log_every`"),
    Argument("--coca-caption-loss-weight", "number", 2.0, "none", "there is no captioning loss"),
    Argument("--coca-contrastive-loss-weight", "number", 1.0, "none", "there is no captioning loss"),
    Argument("--remote-sync", "text", None, "keys", "`storage`: a run can be in a store from the beginning"),
    Argument("--remote-sync-frequency", "whole", 300, "same", "what is written is there at once"),
    Argument("--remote-sync-protocol", "text", "s3", "same", "the URI says it"),
    Argument("--delete-previous-checkpoint", "flag", None, "keys", "`checkpoint.keep: 1`"),
    Argument("--distill-model", "text", None, "keys", _DISTILL),
    Argument("--distill-pretrained", "text", None, "keys", _DISTILL),
    Argument("--use-bnb-linear", "text", None, "none", "there are no layers of 8 bits"),
    Argument("--siglip", "flag", None, "keys", "`objective: {name: siglip}`"),
    Argument(
        "--loss-dist-impl", "text", None, "keys", "`objective.exchange`; gather, or the others as ring: the numbers are the same"
    ),
)


def table(arguments: Sequence[Argument] = ARGUMENTS) -> str:
    """The table of docs/open_clip.md."""
    words = {"keys": "", "same": "the same here: ", "none": "no equal: "}
    rows = [f"| `{each.name}` | {words[each.becomes]}{each.about} |" for each in arguments]
    return "\n".join(["| argument | here |", "|---|---|", *rows])
