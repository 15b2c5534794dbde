"""Basics that all other packages use: errors, boxes, images, atomic writes, random choices, registries, progress."""

FORMAT_VERSION = 2
"""Format version of configs, manifests, result files and exports. SPR 0.1 wrote version 1."""
