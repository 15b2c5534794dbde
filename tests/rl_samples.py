"""Truths and answers for the tests of the trainers' adapters."""

from spr.rewards import Truth, TruthObject

MARKUP = ("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>")
RIGHT = "<|object_ref_start|>dog<|object_ref_end|><|box_start|>(0,0),(500,500)<|box_end|>"
DOG = TruthObject("dog", (0, 0, 320, 240))


def truth(dialect="qwen2_vl", objects=(DOG,), **fields):
    """The JSON of a truth in an image of 640 × 480 pixels: a dog in its upper left quarter."""
    return Truth(objects, dialect, (640, 480), **fields).to_json()
