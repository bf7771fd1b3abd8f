"""How each file format is planned (cut without reading it whole) and read: Parquet, Arrow, CSV, JSON Lines, tables."""
