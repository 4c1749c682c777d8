"""Segmenters: image to logits of each pixel, and the loss that trains them."""

from lipdet.segmenter.network import SEGMENTERS, Segmenter, build_segmenter

__all__ = ["SEGMENTERS", "Segmenter", "build_segmenter"]
