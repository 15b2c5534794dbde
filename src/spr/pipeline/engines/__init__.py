"""Engines run the shards of a stage: `local` uses processes of this machine."""
