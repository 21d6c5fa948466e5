"""The text fields of an item, and the text that a model reads of them: the same in training and in prediction.

In: clean strings by field. Out: one text. Pure.
"""

from collections.abc import Mapping, Sequence

# The fields of an item that can enter its text, and how each is announced there (reference: the paper's
# code announces the first four; `store` and `details` are ours).
LABELS = {
    "main_category": "Main category",
    "title": "Title",
    "features": "Features",
    "description": "Description",
    "store": "Store",
    "details": "Details",
}


def assemble(fields: Mapping[str, object], order: Sequence[str]) -> str:
    """Return the text the model reads: one ``Label: value`` line a field that is not empty, in `order`.

    Args:
        fields: clean strings by field name (the columns of the sample, the keys of a shard's JSON).
        order: names of `LABELS`, as in the parameter ``text.fields``.

    Source: reference, the paper's text (Main category, Title, Features, Description).
    """
    return "\n".join(f"{LABELS[name]}: {value}" for name in order if (value := fields.get(name, "")))
