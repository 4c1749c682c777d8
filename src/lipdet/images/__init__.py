"""Pictures and boxes: readers, crops, rendered house numbers, and one packed format for all."""
