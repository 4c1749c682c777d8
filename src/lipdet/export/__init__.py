"""Detectors as files for other programs: folded, self-describing, and checked against torch."""
