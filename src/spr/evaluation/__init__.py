"""Benchmarks: from a model, or a file of its answers, to metrics with confidence intervals."""
