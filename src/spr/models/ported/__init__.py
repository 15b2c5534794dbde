"""Models that transformers does not include, implemented with its classes."""
