"""The pipeline: one file a stage, in the order of the data, and the runner that joins them."""
