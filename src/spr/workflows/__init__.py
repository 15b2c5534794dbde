"""What joins several packages: one image, sharing on the Hub, cleaning up, plans, the review of pairs."""
