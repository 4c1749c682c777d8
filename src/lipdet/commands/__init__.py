"""The verbs of the command line, one file each, and options that several share."""
