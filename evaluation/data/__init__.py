"""Readers of evaluation data, one file per layout, and what they all return (`base.Content`)."""
