"""Scoring the held-out split with the encoder as it is, all workers sharing the work."""

from dataclasses import dataclass

import numpy as np
import torch

from evaluation.suite import Scores, score
from pipelines.stream import Worker, bank_rows
from training.distributed import gather_objects
from training.encoder import DualEncoder
from training.plan import Plan


@dataclass(frozen=True)
class HeldOutEmbeddings:
    """Unit rows: pictures and captions of the held-out split, and prompts of all classes."""

    images: np.ndarray
    texts: np.ndarray
    prompts: np.ndarray


@torch.inference_mode()
def embed_held_out(encoder: DualEncoder, plan: Plan, worker: Worker) -> HeldOutEmbeddings:
    """Every worker embeds its part of the split and receives the others' parts."""
    encoder.eval()
    data, size = plan.held_out, plan.settings.evaluation.batch_size
    mine = np.array_split(np.arange(len(data.sample_ids)), worker.world_size)[worker.rank]
    column = "image" if encoder.image_tower is not None else "image_features"
    batches = plan.held_out_images.evaluation(data.sample_ids[mine], size, worker)
    images = [encoder.embed_images(batch[column]).cpu().numpy() for batch in batches]  # type: ignore[literal-required]
    if encoder.text_tower is None:
        captions = bank_rows(plan.text_bank)[data.text_ids].astype(np.float32)
        prompts = bank_rows(plan.prompt_bank).astype(np.float32) if data.prompts else captions[:0]
        texts = [encoder.embed_texts(torch.from_numpy(rows).to(worker.device)).cpu().numpy() for rows in (captions, prompts)]
    else:
        texts = [_embed_texts(encoder, plan, worker, strings) for strings in (data.texts, data.prompts)]
    encoder.train()
    gathered = [part for part in gather_objects(np.concatenate(images) if images else None) if part is not None]
    return HeldOutEmbeddings(np.concatenate(gathered), *texts)


def _embed_texts(encoder: DualEncoder, plan: Plan, worker: Worker, strings: list[str]) -> np.ndarray:
    size = plan.settings.evaluation.batch_size
    rows = [np.zeros((0, plan.settings.embed_dim), dtype=np.float32)]
    for start in range(0, len(strings), size):
        ids, mask = (torch.from_numpy(a).to(worker.device) for a in plan.tokenizer(strings[start : start + size]))
        rows.append(encoder.embed_texts(ids, mask).cpu().numpy())
    return np.concatenate(rows)


def validate_held_out(encoder: DualEncoder, plan: Plan, worker: Worker) -> tuple[Scores, HeldOutEmbeddings]:
    """All scores, equal on every worker."""
    rows = embed_held_out(encoder, plan, worker)
    return score(plan.held_out, rows.images, rows.texts, rows.prompts), rows
