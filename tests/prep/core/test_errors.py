"""What is printed of text from elsewhere."""

import pytest

from prep.core.errors import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:secret@host:80/a", "http://***@host:80/a"),
        ("s3://key:se:cret@bucket, https://:t@h", "s3://***@bucket, https://***@h"),
        ("http://host:80/a@b c:d@e", "http://host:80/a@b c:d@e"),
        ("git+ssh://git@host/team", "git+ssh://git@host/team"),
    ],
)
def test_passwords_of_urls_are_not_shown(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_control_characters_are_escaped_and_other_text_is_as_it_was() -> None:
    evil = "\x1b]0;owned\x07\x9b2J\x7f\u202egnp\u2066\u2028\u200f"
    assert printable(evil) == r"\x1b]0;owned\x07\x9b2J\x7f\u202egnp\u2066\u2028\u200f"
    plain = "Kölnisch Wasser 4711, \u65e5\u672c\u8a9e, \u05e2\u05d1\u05e8\u05d9\u05ea, 🙂\u200d \\x1b"
    assert printable(plain) == plain
    assert printable("a\x00\n\t\x7f\x85\u2066\ud800") == r"a\x00\n\t\x7f\x85\u2066\ud800"
