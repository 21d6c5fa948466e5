"""Helpers to define columns."""

import pyarrow as pa


def required(name: str, kind: pa.DataType) -> pa.Field:
    """Return a column that is not nullable."""
    return pa.field(name, kind, nullable=False)
