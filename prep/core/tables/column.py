"""A column of a table that has a value in every row."""

import pyarrow as pa


def required(name: str, kind: pa.DataType) -> pa.Field:
    """Return the field of a column without nulls."""
    return pa.field(name, kind, nullable=False)
