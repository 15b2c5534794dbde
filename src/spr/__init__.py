"""Spatial Preference Rewarding (SPR): teach multimodal LLMs to place what they describe."""

__version__ = "0.2.0"
