"""Data, and the vocabulary every layer shares: settings, batches, prepared datasets, the order of samples, streams, banks.

The lowest layer: it imports none of `evaluation`, `training`, `tuning`.
"""
