"""Detectors that lipdet did not build: audited, attacked, measured, shown.

Notable choices:
- Labels of the module count from 1, as torchvision's do; everything here counts from 0.
- Nothing is certified: no theorem here speaks of box decoding that lipdet does not do itself.
"""
