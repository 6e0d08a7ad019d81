"""Tables of your own: from CSV, Parquet or a frame to packed splits."""
