"""An open_clip training command line as configs of ours, key by key: `prepare.yaml` for its data, and `train.yaml`.

Each key says which argument it comes from. Every argument that was given is either such a key, or listed as the same here, or
listed as one without an equal; none is dropped. What is printed was read back and validated.
"""

import ast
import re
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from pipelines.io.artifacts import resolve
from pipelines.program.errors import UserError
from training.importing.collected import Collected
from training.importing.command_line import given_in, split, workers_of
from training.importing.sources import kind_of, source_of
from training.start import OpenClipStart
from training.towers.open_clip import has_bias

_KEY = "ARGUMENTS"  # for errors
_HELD_OUT = 0.01
_PRECISIONS = {
    **{"amp": "fp16", "fp16": "fp16", "pure_fp16": "fp16", "fp32": "fp32"},
    **{"amp_bf16": "bf16", "amp_bfloat16": "bf16", "bf16": "bf16", "pure_bf16": "bf16"},
}


def imported(command: str, gpus: int | None = None) -> dict[str, str]:
    """Files by name, train.yaml last, whose texts are valid configs.

    Args:
        command: open_clip's arguments, with or without `torchrun ... -m open_clip_train.main` before them.
        gpus: the number of workers, where the command does not say it.

    Raises: `UserError` for arguments that open_clip does not have, or what cannot be imported.
    """
    if find_spec("open_clip") is None:
        raise UserError(_KEY, "open_clip is not installed, whose models they name", "pip install 'raylign[open_clip]'")
    launcher, words = split(command)
    return _Import(given_in(words), workers_of(launcher) if gpus is None else gpus).files()


class _Import(Collected):
    """The conversion, part by part."""

    def files(self) -> dict[str, str]:
        """The configs' texts."""
        name = self._name()
        self.put("name", name, *(["--name"] if "--name" in self.given else ["--model"]))
        prepare = self._data(name)
        self._storage()
        self._model()
        self._objective()
        self._optimizer()
        self._steps()
        self._outside()
        texts = {file: self.prepare_text(tree, note, file) for file, (tree, note) in prepare.items()}
        return texts | {"train.yaml": self.train_text()}

    def _name(self) -> str:
        name = self.get("--name") or f"{self.get('--model')}{'-siglip' if self.get('--siglip') else ''}"
        return re.sub(r"[^A-Za-z0-9._-]+", "-", str(name)).strip("-._") or "open_clip"

    # Data.

    def _data(self, name: str) -> dict[str, tuple[dict[str, Any], str]]:
        """Configs of preparing by file name, each with its first line's comment."""
        train = self.get("--train-data")
        if self.get("--dataset-type") == "synthetic" or not train:
            what = (
                "synthetic data have no equal" if train is None and "--dataset-type" in self.given else "it has no --train-data"
            )
            raise UserError("--train-data", what, "name the data that the run trains on")
        self.put("data.path", f"data/{name}", "--train-data")
        source = source_of(train, self.get, self.get("--train-data-upsampling-factors"))
        used = ["--train-data", *(n for n in ("--dataset-type", "--train-data-upsampling-factors") if n in self.given)]
        used += [n for n in ("--csv-separator", "--csv-img-key", "--csv-caption-key") if n in self.given]
        if kind_of(train, self.get) != "csv":
            self.none |= {n: "the data are no table" for n in used if n.startswith("--csv")}
        common = {"output": f"data/{name}", "mode": "index", "splits": {"test": _HELD_OUT}}
        files = {"prepare.yaml": ({"source": source} | common, ", ".join(used))}
        extra: list[dict[str, Any]] = []
        if val := self.get("--val-data"):
            tree = {"source": source_of(val, self.get), "output": f"data/{name}-val", "mode": "index", "splits": {"test": 1.0}}
            files["prepare-val.yaml"] = (tree, "--val-data")
            extra.append({"path": f"data/{name}-val"})
        if imagenet := self.get("--imagenet-val"):
            classes = {"name": "classes", "path": imagenet, "dataset": "imagenet"}
            tree = {"source": classes, "output": f"data/{name}-imagenet", "mode": "index", "splits": {"test": 1.0}}
            note = "--imagenet-val; its folders must be named in words (great_white_shark), since prompts are made of the names"
            files["prepare-imagenet.yaml"] = (tree, note)
            extra.append({"path": f"data/{name}-imagenet", "retrieval": False})
        if extra:
            self.put("evaluation.extra_datasets", extra, *(n for n in ("--val-data", "--imagenet-val") if n in self.given))
        frequencies = [n for n, data in (("--val-frequency", val), ("--zeroshot-frequency", imagenet)) if data]
        frequencies = frequencies or ["--val-frequency"]
        for unused in {"--val-frequency", "--zeroshot-frequency"} & self.given.keys() - set(frequencies):
            self.none[unused] = "there are no such data"
        epochs = self.get("--epochs")
        every = [value if value > 0 else epochs for value in map(self.get, frequencies)]
        self.put("evaluation.every_epochs", min(every), *frequencies)
        return files

    def _storage(self) -> None:
        if remote := self.get("--remote-sync"):
            self.put("storage", remote, "--remote-sync")
            if "--logs" in self.given:
                self.none["--logs"] = "the run is where --remote-sync says"
        elif str(self.get("--logs")).lower() == "none":
            self.none["--logs"] = "a run always writes its folder"
        else:
            self.put("storage", self.get("--logs").rstrip("/").removeprefix("./") or ".", "--logs")

    # The model.

    def _model(self) -> None:
        import open_clip

        model, weights = self.get("--model"), self.get("--pretrained") or None
        names = ["--model", *(["--pretrained"] if "--pretrained" in self.given else [])]
        resume = self.get("--resume")
        if resume == "latest":
            self.same["--resume"] = "the same command resumes a run"
        elif resume is not None:
            weights, names = resume, [*names, "--resume"]
            self.none["--resume"] = "only its weights are taken; optimizer, step and epoch begin anew"
        model = self._quick(model, weights)
        if "coca" in model.lower():
            self.lacks("--model", f"{model}'s captioning loss; its two halves are trained")
        self.put("start.name", "open_clip", *names)
        self.put("start.model", model)
        if weights is not None:
            self.put("start.weights", weights)
        else:
            self.put("start.temperature", False)
        half_of_texts = (open_clip.get_model_config(model) or {}).get("text_cfg", {})
        if words := half_of_texts.get("hf_model_name"):
            other = "text_tower: {name: huggingface, weights: ...} takes its published weights, without the projection"
            self.lacks("--model", f"{model} reads texts with {words}, which towers of open_clip do not; {other}")
        self._lock(open_clip.get_model_config(model) or {})
        self._sizes(OpenClipStart(name="open_clip", model=model, weights=weights))
        scale, ratio = [0.9, 1.0], None
        names = ["--aug-cfg"]
        for entry in self.get("--aug-cfg") or ():
            key, _, text = entry.partition("=")
            value = _literal(text)
            if key == "scale":
                scale = list(value)
            elif key == "ratio":
                ratio = list(value)
            elif not (key == "use_timm" and value is False) and value is not None:
                self.none[f"--aug-cfg {entry}"] = "views are crops; objectives with strong views have colours and blur"
        self.put("data.augment.crop_scale", scale, *names)
        if ratio is not None:
            self.put("data.augment.crop_ratio", ratio)
        self.put("data.augment.flip", False)

    def _lock(self, config: Mapping[str, Any]) -> None:
        """What of both halves trains, and what they keep for the backward pass."""
        for half, last, part in (("image", "groups", "vision_cfg"), ("text", "layers", "text_cfg")):
            lock, unlocked = f"--lock-{half}", f"--lock-{half}-unlocked-{last}"
            # open_clip's groups: what comes before the blocks, each block, and the projection; a norm belongs to the last block.
            groups = self.get(unlocked)
            trained, blocks = groups - 1, config.get(part, {}).get("layers", 12 if half == "text" else None)
            if self.get(lock) and groups > 0 and isinstance(blocks, int) and "timm_model_name" not in config.get(part, {}):
                if trained <= blocks:
                    self.put(f"{half}_tower.frozen_blocks", blocks - trained, lock, unlocked)
                if trained == 0:
                    self.none[unlocked] = "the norm before the projection trains too"
            elif self.get(lock):
                self.put(f"{half}_tower.mode", "frozen", lock)
                if groups > 0:
                    self.none[unlocked] = f"{half}_tower.frozen_blocks: N would train what comes after the first N blocks"
            elif unlocked in self.given:
                self.none[unlocked] = f"open_clip reads it with {lock} only"
            if self.get("--grad-checkpointing") and self.tree.get(f"{half}_tower", {}).get("mode") != "frozen":
                self.put(f"{half}_tower.recompute", True, "--grad-checkpointing")
        if self.get("--grad-checkpointing") and self.get("--lock-image") and self.get("--lock-text"):
            self.same.setdefault("--grad-checkpointing", "a frozen tower keeps no activations")

    def _quick(self, model: str, weights: str | None) -> str:
        """The model with the activation of its weights, or the one asked for."""
        import open_clip

        quick = f"{model}-quickgelu"
        known = quick in open_clip.list_models()
        if self.get("--force-quick-gelu"):
            if not known:
                self.none["--force-quick-gelu"] = f"open_clip has no {quick}"
                return model
            self.put("start.model", quick, "--force-quick-gelu")
            return quick
        tags = open_clip.list_pretrained_tags_by_model(quick) if known else []
        if weights in tags and open_clip.get_pretrained_cfg(quick, weights).get("quick_gelu"):
            note = f"{weights} was trained with QuickGELU, so start.model is {quick}; open_clip warns, and computes without it"
            self.lacks("--model", note)
            return quick
        return model

    def _sizes(self, start: OpenClipStart) -> None:
        sizes = start.sizes()
        context, image = self.get("--force-context-length"), self.get("--force-image-size")
        if context is not None and context <= (sizes.max_tokens or 0):
            self.put("text_tower.max_tokens", context, "--force-context-length")
        elif context is not None:
            self.none["--force-context-length"] = f"{start.model} reads {sizes.max_tokens} tokens"
        if image is not None and {int(side) for side in image} == {sizes.image_size}:
            del self.none["--force-image-size"]
            self.same["--force-image-size"] = f"{start.model} takes {sizes.image_size} pixels"

    def _objective(self) -> None:
        teacher, weights = self.get("--distill-model"), self.get("--distill-pretrained")
        random = not self.tree["start"].get("weights")
        siglip = bool(self.get("--siglip"))
        if teacher is not None and weights is not None:
            self._distill(teacher, weights)
            if siglip:
                self.none["--siglip"] = "open_clip's distillation has CLIP's loss, whatever this says"
        elif siglip:
            self.put("objective.name", "siglip", "--siglip")
            start = self.tree["start"]
            path = None if random else resolve(start["weights"], "--pretrained")
            if not (random or "SigLIP" in start["model"] or (path is not None and has_bias(path))):
                self.put("objective.bias", 0.0)  # as open_clip sets it for weights without one
            if ring := self.get("--loss-dist-impl"):
                self.put("objective.exchange", "gather" if ring == "gather" else "ring", "--loss-dist-impl")
        else:
            self.put("objective.name", "clip", *(["--siglip"] if "--siglip" in self.given else []))
            if random:
                self.put("objective.temperature", 0.07)
        for name in ("--distill-model", "--distill-pretrained"):
            if name in self.given and (teacher is None or weights is None):
                self.none[name] = "open_clip distils only with both --distill-model and --distill-pretrained"
        if "--loss-dist-impl" in self.given and not siglip:
            self.none["--loss-dist-impl"] = "open_clip reads it with --siglip only"
        # open_clip takes equal captions and images for negatives of each other.
        self.put("objective.mask_false_negatives", False)

    def _distill(self, model: str, weights: str) -> None:
        start = OpenClipStart(name="open_clip", model=model, weights=weights)
        sizes, (half, _) = start.sizes(), start.halves()
        names = ("--distill-model", "--distill-pretrained")
        self.put("frozen_encoders.image_encoder", half | {"image_size": sizes.image_size}, *names)
        self.put("frozen_encoders.text_encoder", half | {"max_tokens": sizes.max_tokens}, *names)
        self.put("objective.name", "distill", *names)
        for key, value in {"contrastive": 1.0, "relation": 1.0, "feature": 0.0, "interactive": 0.0, "live": True}.items():
            self.put(f"objective.{key}", value)
        if resolve(weights, "--distill-pretrained") is not None:
            scale, _ = start.scale_and_bias()
            self.put("objective.teacher_temperature", 0.01 if scale is None else round(1 / scale, 8))
        else:
            self.put("objective.teacher_temperature", 0.01)
            self.none["--distill-pretrained"] = "its temperature is not read here: 0.01 is that of most released models"
        if not self.tree["start"].get("weights"):
            self.put("objective.temperature", 0.07)

    # Optimization.

    def _optimizer(self) -> None:
        name = self.get("--opt").lower()
        options: dict[str, Any] = {}
        used = ["--opt", "--lr", "--wd"]
        if name.startswith("timm/"):
            name = name.removeprefix("timm/")
            if "--lr" not in self.given:
                raise UserError("--lr", f"open_clip has no default for --opt timm/{name}", "give it")
            betas, eps = [self.get("--beta1"), self.get("--beta2")], self.get("--eps")
            options = ({"betas": betas} if None not in betas else {}) | ({"eps": eps} if eps is not None else {})
            if (momentum := self.get("--momentum")) is not None:
                self.put("optimizer.momentum", momentum, "--momentum")
        else:
            vit = "vit" in self.get("--model").lower()
            first, second, eps = (0.9, 0.98, 1e-6) if vit else (0.9, 0.999, 1e-8)
            options = {"betas": [self.given.get("--beta1", first), self.given.get("--beta2", second)]}
            options["eps"] = self.given.get("--eps", eps)
            if "--momentum" in self.given:
                self.none["--momentum"] = "open_clip's adamw has none"
        self.put("optimizer.name", name, *used)
        self.put("optimizer.lr", self.get("--lr"))
        self.put("optimizer.weight_decay", self.get("--wd"))
        if options:
            self.put("optimizer.options", options, *(n for n in ("--beta1", "--beta2", "--eps") if n in self.given))
        self._schedule()
        if (norm := self.get("--grad-clip-norm")) is not None:
            self.put("clip_norm", norm, "--grad-clip-norm")

    def _schedule(self) -> None:
        if self.get("--skip-scheduler"):
            self.put("schedule.name", "constant", "--skip-scheduler")
            self.none |= {
                n: "--skip-scheduler leaves the learning rate" for n in ("--warmup", "--lr-scheduler") if n in self.given
            }
            return
        kind = self.get("--lr-scheduler")
        known = {"cosine": "cosine", "const": "constant", "const-cooldown": "constant"}
        if kind not in known:
            raise UserError("--lr-scheduler", f"open_clip has no '{kind}'", f"it has {', '.join(known)}")
        self.put("schedule.name", known[kind], "--lr-scheduler", "--warmup")
        self.put("schedule.warmup_steps", self.get("--warmup"))
        if kind == "const-cooldown":
            self.none["--lr-scheduler"] = "const-cooldown's end; until then it is constant"

    def _steps(self) -> None:
        batch, parts = self.get("--batch-size"), self.get("--accum-freq")
        self.put("epochs", self.get("--epochs"), "--epochs")
        self.put("global_batch_size", batch * self.workers * parts, "--batch-size", "--accum-freq")
        notes = self.sources["global_batch_size"]
        notes[:] = [f"{' x '.join(notes)} x {self.workers} workers"]
        if parts > 1:
            self.put("accumulate", parts, "--accum-freq")
        gpu = self.get("--device").startswith("cuda")
        if not gpu and self.get("--device") != "cpu":
            self.none["--device"] = "training is on CUDA or CPUs"
        precision = _PRECISIONS.get(self.get("--precision"))
        if precision is None:
            raise UserError("--precision", f"open_clip has no '{self.get('--precision')}'", f"it has {', '.join(_PRECISIONS)}")
        # On a CPU, torch's autocast of open_clip's amp is bf16.
        self.put("precision", "bf16" if precision == "fp16" and not gpu else precision, "--precision")
        if self.get("--precision") in ("bf16", "pure_bf16", "fp16", "pure_fp16"):
            self.none["--precision"] = "weights in half precision; here they are fp32, and the networks run in half precision"
        if self.get("--torchcompile"):
            self.put("compile", True, "--torchcompile")
        self.put("seed", self.get("--seed"), "--seed")
        self.put("resources.num_workers", self.workers, "--device", "--workers")
        self.put("resources.use_gpu", gpu)
        self.put("resources.data_cpus", max(1, self.get("--workers") * self.workers))

    def _outside(self) -> None:
        self.put("log_every", self.get("--log-every-n-steps"), "--log-every-n-steps")
        if self.get("--delete-previous-checkpoint"):
            self.put("checkpoint.keep", 1, "--delete-previous-checkpoint")
        if report := self.get("--report-to"):
            self.put("tensorboard", "tensorboard" in report or "all" in report, "--report-to")
            if "wandb" in report or "all" in report:
                self.put("loggers", ["wandb"], "--report-to")


def _literal(text: str) -> Any:
    """A value of --aug-cfg, as open_clip reads it."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
