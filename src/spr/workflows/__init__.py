"""What joins several packages: checks and plans of a config, the review of pairs, one image, the Hub, cleaning up."""
