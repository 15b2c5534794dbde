"""Generated scenes, the weights of small models trained on them, and `spr quickstart`, which runs the method on both.

The recipes that trained the models are in `tools/embedded` of the repository. `docs/embedded.md` describes both.
"""
