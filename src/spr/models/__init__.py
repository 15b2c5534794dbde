"""Models behind three small protocols (`spr.models.protocols`): one file per describer, scorer and detector."""
