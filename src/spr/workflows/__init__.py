"""What joins several packages: sweeps of settings, evaluation while training, the review of pairs."""
