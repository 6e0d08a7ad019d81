"""Data sets: schema, packed splits, downloads, and one file a data set."""
