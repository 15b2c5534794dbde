"""Readers of other annotation formats, one file per format."""
