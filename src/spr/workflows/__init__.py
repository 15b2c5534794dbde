"""What joins several packages: plans and sweeps of configs, evaluation while training, reviews, one image, the Hub."""
