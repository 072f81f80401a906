"""The prepared dataset: opened, ordered, streamed to workers as batches of views and tokens."""
