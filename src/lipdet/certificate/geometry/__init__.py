"""Where boxes of uncertain offsets lie, and how much they overlap at least and at most."""
