"""Assemble the text that the model reads from an item's fields; training and prediction share it.

Input: cleaned strings by field name.
Output: one string.
Guarantees: pure functions.
"""

from collections.abc import Mapping, Sequence

# The fields that the text can contain, with the label of each. The paper's code has the first four; `store` and
# `details` are additions.
LABELS = {
    "main_category": "Main category",
    "title": "Title",
    "features": "Features",
    "description": "Description",
    "store": "Store",
    "details": "Details",
}


def assemble(fields: Mapping[str, object], order: Sequence[str]) -> str:
    """Return the text that the model reads: one ``Label: value`` line per non-empty field, in `order`.

    Args:
        fields: cleaned strings by field name (columns of the sample, or keys of a shard's JSON).
        order: field names, keys of `LABELS`: the parameter ``text.fields``.
    """
    return "\n".join(f"{LABELS[name]}: {value}" for name in order if (value := fields.get(name, "")))
