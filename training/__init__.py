"""One run: a dual encoder, an objective, Ray Train workers, checkpoints, a report."""
