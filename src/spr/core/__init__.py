"""What everything else uses: errors, boxes, image files, atomic writes, random choices, progress."""

FORMAT_VERSION = 2
"""Version of the formats of configs, manifests, result files and exports. Version 1 was SPR 0.1."""
