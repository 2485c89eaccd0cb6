"""A snapshot, and a run trained on it, as one page."""
