"""Files of a format that this version does not read."""

import json
import re

import pytest

from prep.core import formats
from prep.core.errors import UserError
from prep.core.formats import check_format, version


@pytest.mark.parametrize(
    ("found", "needs", "told"),
    [
        (3, "1.2", "x has format 3 and EffiMini {} reads 1, 2; install EffiMini 1.2 or newer, or do it again"),
        (3, None, "x has format 3 and EffiMini {} reads 1, 2; install a newer version of EffiMini, or do it again"),
        (3, "1;2", "x has format 3 and EffiMini {} reads 1, 2; install a newer version of EffiMini, or do it again"),
        (0, "1.2", "x has format 0 and EffiMini {} reads 1, 2; do it again"),
        (True, None, "x has format True and EffiMini {} reads 1, 2; do it again"),
        ("2", None, "x has format '2' and EffiMini {} reads 1, 2; do it again"),
    ],
)  # fmt: skip
def test_a_format_that_is_not_read_is_told_with_the_version_that_reads_it(
    found: object, needs: object, told: str
) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(told.format(version()))}$"):
        check_format(json.dumps({"format": found, "needs": needs}).encode(), (1, 2), "x", "do it again")


def test_a_file_that_states_no_format_has_the_first() -> None:
    check_format(b"{}", (1, 2), "x", "do it again")
    with pytest.raises(UserError, match="^x has format 1 and "):
        check_format(b"{}", (2, 3), "x", "do it again")


def test_a_checkout_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    assert version()[0].isdigit()
    monkeypatch.setattr(formats, "installed", _absent)
    assert version() == "from a checkout"


def _absent(name: str) -> str:
    raise formats.PackageNotFoundError(name)
