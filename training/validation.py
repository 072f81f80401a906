"""Scores held-out splits with the current encoder; the workers share the embedding."""

from pathlib import Path

import numpy as np
import torch

from evaluation.suite import Scores, score
from pipelines.dataset.stream import Worker
from pipelines.features.rows_by_id import feature_rows
from training import pulse
from training.distributed import gather_objects
from training.encoder import DualEncoder
from training.held_out import HeldOutEmbeddings
from training.plan import Plan, Scored
from training.towers.padding import Padded


@torch.inference_mode()
def embed_held_out(encoder: DualEncoder, plan: Plan, scored: Scored, worker: Worker) -> HeldOutEmbeddings:
    """Embeddings of a split, the same on every worker: each embeds its part, and gathers the images of the others."""
    encoder.eval()
    data, size = scored.data, plan.settings.evaluation.batch_size
    mine = np.array_split(np.arange(len(data.sample_ids)), worker.world_size)[worker.rank]
    column = "image" if encoder.image_tower is not None else "image_features"
    batches = scored.images.evaluation(data.sample_ids[mine], size, worker)
    images = []
    for batch in batches:
        pulse.at("evaluate")
        images.append(encoder.embed_images(batch[column]).cpu().numpy())  # type: ignore[literal-required]
    if encoder.text_tower is None:
        rows = [_rows(scored.text_features, data.text_ids), _rows(scored.prompt_features, np.arange(len(data.prompts)))]
        texts = [_embed_features(encoder, plan, worker, features) for features in rows]
    else:
        padded = Padded(encoder.text_tower, plan.tokenizer)
        texts = [_embed_texts(encoder, plan, worker, padded, strings) for strings in (data.texts, data.prompts)]
    encoder.train()
    gathered = [part for part in gather_objects(np.concatenate(images) if images else None) if part is not None]
    return HeldOutEmbeddings(np.concatenate(gathered), *texts)


def _rows(stored: Path | str | None, ids: np.ndarray) -> np.ndarray | None:
    """Stored features, float32 [n, F]; None if none are needed: then they may be missing."""
    return feature_rows(stored)[ids].astype(np.float32) if len(ids) else None


def _embed_features(encoder: DualEncoder, plan: Plan, worker: Worker, features: np.ndarray | None) -> np.ndarray:
    if features is None:
        return np.zeros((0, plan.settings.embed_dim), dtype=np.float32)
    return encoder.embed_texts(torch.from_numpy(features).to(worker.device)).cpu().numpy()


def _embed_texts(encoder: DualEncoder, plan: Plan, worker: Worker, padded: Padded, strings: list[str]) -> np.ndarray:
    size = plan.settings.evaluation.batch_size
    rows = [np.zeros((0, plan.settings.embed_dim), dtype=np.float32)]
    for start in range(0, len(strings), size):
        pulse.at("evaluate")
        ids, mask = padded(strings[start : start + size])
        rows.append(encoder.embed_texts(ids.to(worker.device), mask.to(worker.device)).cpu().numpy())
    return np.concatenate(rows)


def validate_held_out(encoder: DualEncoder, plan: Plan, worker: Worker) -> tuple[list[Scores], list[HeldOutEmbeddings]]:
    """The scores of each dataset, the same on every worker, and the embeddings that they are computed from."""
    rows = [embed_held_out(encoder, plan, scored, worker) for scored in plan.scored]
    return [score(s.data, r.images, r.texts, r.prompts) for s, r in zip(plan.scored, rows, strict=True)], rows
