"""Object detection: annotations of COCO and LVIS, matching by their rules, and their average precision and recall."""
