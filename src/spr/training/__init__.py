"""Preference training: pairs → a LoRA adapter, with image and prompt computed once a pair (METHOD §6)."""
