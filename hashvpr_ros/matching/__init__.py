"""From an image to a decision: search, re-ranking, sequence support, probability."""
