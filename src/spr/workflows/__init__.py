"""What joins several packages: checking and planning a config, and reviewing pairs."""
