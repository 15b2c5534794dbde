"""The recipes that train the embedded models; not part of the wheel."""
