"""Data, and what every layer shares: settings, batches, prepared datasets, sample order, streams, stored features.

This is the lowest layer: it does not import `evaluation`, `training` or `tuning`.
"""
