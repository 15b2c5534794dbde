"""A run on disk: shards and manifests, the folder's lock and log, readers and statistics."""
