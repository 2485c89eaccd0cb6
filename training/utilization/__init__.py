"""How a trained table is used, and the table without the rows that are not."""
