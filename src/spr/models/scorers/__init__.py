"""Image-text models for the semantic score."""
