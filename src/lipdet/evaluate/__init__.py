"""Figures over a data set, clean, attacked and certified; of boxes and of pixels."""
