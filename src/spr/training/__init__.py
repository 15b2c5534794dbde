"""Preference training of a LoRA adapter: `run.py` is the entry point, `trainer.py` the loop."""
