"""Objectives, one file each. The union of their settings is the registry: a new objective is one file and one member."""

from training.objectives.clip import ClipSettings

ObjectiveUnion = ClipSettings
