"""A catalogue of products as a table: read its rows, map its columns to the dataset's fields, propose that mapping."""
