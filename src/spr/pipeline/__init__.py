"""The pipeline: one file per stage, in the order of the data, and the runner that executes them."""
