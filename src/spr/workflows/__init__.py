"""What joins several packages: the review of pairs in a browser."""
