"""What runs shards: `local`, processes of this machine. Stages know nothing of it."""
