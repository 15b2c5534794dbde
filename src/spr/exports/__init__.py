"""Preference pairs in the formats of other trainers: one file a format, and what they share.

`spr.exports.writing.export` reads a run, `formats` lists what can be written, `images` and `texts` decide what a row
holds, `folder` makes the output whole or not at all, and `card` describes it.
"""
