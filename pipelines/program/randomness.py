"""Randomness as a function of (seed, epoch, sample, ...), never of scheduling.

Every random choice names what it is for and which seed, epoch and sample it belongs to. The same names give the same
numbers in any process, on any number of workers, after any restart.
"""

import hashlib

import numpy as np


def generator(purpose: str, *key: int) -> np.random.Generator:
    """A generator of its own for one choice, such as `generator("view", seed, epoch, sample_id)`."""
    return np.random.default_rng([_number(purpose), *key])


def torch_seed(purpose: str, *key: int) -> int:
    """A 63-bit seed for torch's generators."""
    return int(generator(purpose, *key).integers(2**63 - 1))


def uniform_of(text: str, *key: int) -> float:
    """A number in [0, 1) that belongs to a text: stable when other texts come and go."""
    return _number("\0".join([text, *map(str, key)])) / 2**64


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
