"""`spr check DATA`: what the numbers of anyone's grounding data mean, and what is wrong with them."""
