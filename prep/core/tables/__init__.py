"""Schemas of all tables, one module per table: what one stage writes and the next one reads."""
