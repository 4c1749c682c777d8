"""Average precision of a detector over a data set."""
