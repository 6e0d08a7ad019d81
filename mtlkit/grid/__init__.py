"""From settings to a plan of cells, and from a cell to its record."""
