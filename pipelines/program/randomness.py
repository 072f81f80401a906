"""Randomness as a function of (seed, epoch, sample, ...), never of scheduling.

Every random choice is keyed by its purpose and its seed, epoch and sample. The same names give the same
numbers in any process, on any number of workers, after any restart.
"""

import hashlib

import numpy as np


def generator(purpose: str, *key: int) -> np.random.Generator:
    """A separate generator for one choice, such as `generator("view", seed, epoch, sample_id)`."""
    return np.random.default_rng([_number(purpose), *key])


def torch_seed(purpose: str, *key: int) -> int:
    """A 63-bit seed for torch's generators."""
    return int(generator(purpose, *key).integers(2**63 - 1))


def uniform_of(text: str, *key: int) -> float:
    """A number in [0, 1) determined by a text, so it is stable when other texts are added or removed."""
    return _number("\0".join([text, *map(str, key)])) / 2**64


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
