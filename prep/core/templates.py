"""Render the HTML and Markdown templates that are stored next to the code.

Input: the name of a template, and values.
Output: text.
Guarantees: a value that the template uses and that is missing is an error; HTML pages escape all values.
"""

import base64
import hashlib
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

import jinja2

DEMO_NOTICE = "DEMO DATA: synthetic products; these numbers say nothing about real ones"


def render(
    package: str, name: str, values: Mapping[str, Any], filters: Mapping[str, Callable[..., str]] | None = None
) -> str:
    """Render the template `name` of a package.

    Args:
        package: shards, effimini or validation. Pages extend page.html.jinja of prep.core.
        name: file name that ends in .html.jinja or .md.jinja. Markdown is not escaped, so it must not contain text from
            products; it keeps its final newline.
        values: values by their names in the template.
        filters: additional filters by their names in the template.
    """
    is_page = name.endswith(".html.jinja")
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(package, "."), jinja2.PackageLoader("prep.core", ".")]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=not is_page,
        autoescape=is_page,  # noqa: S701 -- off for Markdown only
    )
    environment.filters |= filters or {}
    return environment.get_template(name).render(values)


def read_script(package: str, name: str) -> dict[str, str]:
    """Return the script of a page and its SHA-256 for the page's policy, by their names in the template."""
    script = resources.files(package).joinpath(name).read_text(encoding="utf-8")
    return {"script": script, "digest": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}


def data_url(jpeg: bytes) -> str:
    """Return a JPEG as a data: URL, for a self-contained page."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
