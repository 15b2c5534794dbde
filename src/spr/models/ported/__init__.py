"""Models that transformers lacks, ported to its classes."""
