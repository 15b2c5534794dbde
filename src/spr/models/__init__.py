"""Models behind three small protocols (`spr.models.protocols`), one adapter a file."""
