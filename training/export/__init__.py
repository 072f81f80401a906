"""Exports: a run as a model of other libraries, `raylign export RUN --to TARGET`. One file a target, in one order of calls.

`model` opens the run, a target writes the folder, `parity` loads that folder with the target's library alone (`usage/`) and
compares, `card` says what it is. A target has `name`, `library`, `express` and `write`; see `target`.
"""
