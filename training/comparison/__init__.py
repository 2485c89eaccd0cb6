"""Memory layouts at equal bytes: cells, how they rank, why they differ."""
