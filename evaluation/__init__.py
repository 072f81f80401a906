"""Scores for anything that embeds images and texts: retrieval, zero-shot classification and other tasks.

Above `pipelines` and below `training`, which it never imports: a config names the embedder by an import string.
"""
