"""Names that users read: the parameters that messages and docstrings mention exist."""

import ast
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from prep.core.params import RENAMED, Params

ROOT = Path(__file__).parents[1]
PACKAGES = ("prep", "shards", "effimini", "validation", "benchmarks")
ENDINGS = ("json", "onnx", "py", "safetensors", "txt")  # of files that are named like a section


def keys(kind: Any, section: str = "") -> Iterator[str]:
    """Yield the dotted keys below a section, and the sections."""
    for field in fields(kind):
        name, of = f"{section}{field.name}", get_type_hints(kind)[field.name]
        yield name
        if is_dataclass(of):
            yield from keys(of, f"{name}.")


KEYS = set(keys(Params))
MENTIONED = re.compile(rf"(?<![\w./`<])({'|'.join(field.name for field in fields(Params))})\.([a-z_]+)\b(?!\()")


def strings(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the text of every string of a module with its line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value


@pytest.mark.parametrize("package", PACKAGES)
def test_the_parameters_that_a_text_mentions_exist(package: str) -> None:
    unknown = [
        f"{path.relative_to(ROOT)}:{line}: {key}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for line, text in strings(path)
        for section, name in MENTIONED.findall(text)
        if (key := f"{section}.{name}") not in KEYS and name not in ENDINGS
    ]
    assert unknown == []


def test_no_new_name_is_an_old_one() -> None:
    assert set(RENAMED.values()) <= KEYS
    assert not set(RENAMED) & KEYS
