"""Multimodal LLMs that describe regions."""
