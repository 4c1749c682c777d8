"""Under which conditions a detection of an object cannot be lost (theory §5)."""
