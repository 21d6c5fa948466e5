"""The columns of every table of the data, a module a table: what one stage writes and the next one reads."""
