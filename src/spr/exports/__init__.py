"""Preference pairs in the formats of other trainers.

`writing.export` writes the pairs of a run. Each format is one file that defines a `formats.Format`, and one line in
`formats.FORMATS`. `texts` and `images` prepare the contents of a row, `card` writes the dataset card, and `marker`
records what a folder holds.
"""
