"""Pages and Markdown out of the templates that lie beside the code.

In: a template's name and values. Out: text. Guaranteed: a value that the template names and nobody gave is an
error, and in a page whatever comes from outside stands as text.
"""

import base64
from collections.abc import Callable, Mapping
from typing import Any

import jinja2

DEMO_NOTICE = "DEMO DATA: made products; these numbers say nothing about real ones"


def render(
    room: str, name: str, values: Mapping[str, Any], filters: Mapping[str, Callable[..., str]] | None = None
) -> str:
    """Return the template `name` of the package `room`, filled in.

    Args:
        room: shards, effimini or validation. Pages extend page.html.jinja of prep.
        name: ends in .html.jinja or .md.jinja. Markdown is not escaped: no text of a product may enter it, and
            Markdown keeps its last newline.
        values: by their names in the template.
        filters: by theirs.
    """
    is_page = name.endswith(".html.jinja")
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(room, "."), jinja2.PackageLoader("prep.core", ".")]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=not is_page,
        autoescape=is_page,  # noqa: S701 -- Markdown is none
    )
    environment.filters |= filters or {}
    return environment.get_template(name).render(values)


def data_url(jpeg: bytes) -> str:
    """Return a JPEG as a URL that holds it, for a page that asks for nothing."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
