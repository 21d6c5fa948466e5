"""Names that users read: the parameters that messages and docstrings mention exist."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from prep.core.params import RENAMED, flatten, read_yaml

ROOT = Path(__file__).parents[1]
PACKAGES = ("prep", "shards", "effimini", "validation", "benchmarks")
ENDINGS = ("json", "onnx", "py", "safetensors", "txt")  # of files that are named like a section


PARAMETERS = [key.split(".") for key, _ in flatten(read_yaml(ROOT / "params/base.yaml"))]
KEYS = {".".join(key[:2]) for key in PARAMETERS}
MENTIONED = re.compile(rf"(?<![\w./`<])({'|'.join(sorted({key[0] for key in PARAMETERS}))})\.([a-z_]+)\b(?!\()")


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
