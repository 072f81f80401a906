"""What a dual encoder is worth: retrieval and zero-shot classification, for anything that embeds images and texts.

Above `pipelines`, below `training`, which it never imports: what it evaluates is named by an import string.
"""
