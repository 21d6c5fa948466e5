"""Describe a published dataset in the Croissant format 1.0, which dataset searches and loaders read.

Input: manifests, and where, when and under which licence they are published. Output: JSON-LD with the properties that
the specification requires (https://docs.mlcommons.org/croissant/docs/croissant-spec.html). Guarantees: the same
arguments give the same text; every file and field that it names is in the repository.
"""

from collections.abc import Sequence
from datetime import date
from typing import Any

from prep.core.tables.shards import METADATA_FIELDS, TABULAR
from shards.card import FIELDS, LABEL_FIELDS, Field, title
from shards.manifest import Manifest

CROISSANT_FILE = "croissant.json"

# The context that the specification prescribes: words of Croissant, and those that are more than a name.
_WORDS = (
    *("citeAs", "column", "extract", "field", "fileProperty", "fileObject", "fileSet", "format", "includes"),
    *("isLiveDataset", "jsonPath", "key", "md5", "parentField", "path", "recordSet", "references", "regex", "repeated"),
    *("equivalentProperty", "replace", "samplingRate", "separator", "source", "subField", "transform"),
)
_CONTEXT = {word: f"cr:{word}" for word in _WORDS} | {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "rai": "http://mlcommons.org/croissant/RAI/",
    "sc": "https://schema.org/",
}
_TYPES = {
    "string": "sc:Text",
    "float": "sc:Float",
    "int": "sc:Integer",
    "bool": "sc:Boolean",
}


def describe(
    manifests: Sequence[Manifest], name: str, url: str, licence: str, published: date, *, content: bool
) -> dict[str, Any]:
    """Return the description of a repository.

    Args:
        manifests: one per category.
        name: the repository, OWNER/NAME.
        url: its address.
        licence: the hub's name of it; "" if none is stated.
        published: the day on which the repository was created.
        content: whether it has the shards; otherwise it has the labels as parquet.
    """
    owner = name.partition("/")[0]
    repository = {
        "@type": "cr:FileObject",
        "@id": "repository",
        "name": "repository",
        "description": "The repository on the hub.",
        "contentUrl": f"{url}/tree/main",
        "encodingFormat": "git+https",
        "sha256": "https://github.com/mlcommons/croissant/issues/80",  # as the hub writes it: a repository has none
    }
    if content:
        files = [
            _files("tars", "application/x-tar", "*/*.tar", "repository"),
            _files("json-files", "application/json", "*.json", "tars"),
            _files("jpg-files", "image/jpeg", "*.jpg", "tars"),
        ]
        names = [name for name in METADATA_FIELDS if name != TABULAR]
        fields = [_field(name, FIELDS[name], "json-files", {"jsonPath": f"$.{name}"}) for name in names]
    else:
        files = [_files("parquet-files", "application/x-parquet", "*/*.parquet", "repository")]
        number = Field("float", "", "a number of the product; the card says which")
        columns = LABEL_FIELDS | dict.fromkeys(manifests[0].tabular, number)
        fields = [_field(name, about, "parquet-files", {"column": name}) for name, about in columns.items()]
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": name.partition("/")[2],
        "description": title([manifest.category for manifest in manifests], manifests[0].source.kind),
        "url": url,
        "license": f"https://choosealicense.com/licenses/{licence or 'unknown'}/",  # as the hub writes it
        "creator": {"@type": "sc:Organization", "name": owner, "url": url.removesuffix(f"datasets/{name}") + owner},
        "datePublished": published.isoformat(),
        "distribution": [repository, *files],
        "recordSet": [{"@type": "cr:RecordSet", "@id": "products", "name": "products", "field": fields}],
    }


def _files(name: str, kind: str, pattern: str, within: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": name,
        "name": name,
        "containedIn": {"@id": within},
        "encodingFormat": kind,
        "includes": pattern,
    }


def _field(name: str, about: Field, files: str, extract: dict[str, str]) -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": f"products/{name}",
        "name": name,
        "description": about.meaning.replace("**", ""),
        "dataType": _TYPES[about.type],
        "source": {"fileSet": {"@id": files}, "extract": extract},
    }
