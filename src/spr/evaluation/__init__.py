"""Benchmarks, one file a task: from a model or from a file of its answers to figures with their intervals."""
