"""The key under which an embedder's rows are cached: a digest of everything that decides them.

That is every parameter and buffer as loaded, whatever file it came from; how an image and a text become tensors; and the
versions of the libraries involved, since an upgrade may change a resize or a forward pass. Neither file locations nor the device,
which only affects the last bits, are included.
"""

import hashlib
import json
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import nn

_LIBRARIES = (
    *("raylign", "torch", "torchvision", "timm", "transformers", "tokenizers", "open_clip_torch"),
    *("pillow", "cykooz-resizer", "opencv-python-headless", "numpy"),
)


def fingerprint(network: nn.Module, about: Any) -> str:
    """Digest of a network's tensors and of `about`: JSON values for everything else that decides the rows."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps([_versions(), about], sort_keys=True, default=str).encode())
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        flat = tensor.detach().cpu().reshape(-1).contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def of_tokenizer(tokenizer: Any) -> list[Any]:
    """What decides the ids of a transformers tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        words = tokenizer.get_vocab()
    else:
        # It also contains the padding and truncation of the last call, which are not part of the tokenizer.
        words = {key: value for key, value in json.loads(backend.to_str()).items() if key not in ("padding", "truncation")}
    return [type(tokenizer).__name__, tokenizer.model_max_length, words]


def _versions() -> dict[str, str]:
    versions = {}
    for library in _LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            continue
    return versions
