"""Read a list of texts that a tool wrote as one text: JSON, Python's repr, or what numpy and pandas print.

Input: a text where a list is expected, for example a cell of a CSV file.
Output: the texts of the list.
Guarantees: a list is read whole or refused; a text that is no list stays as it is. Time is linear in the length.
"""

import json
import re

from prep.core.text import present

# What a list begins with: a bracket, a call of a constructor, or the header of an extension array of pandas.
_BEGINS = re.compile(r"\s*(?:[\[(]|(?:\w+\.)?(?:array|list|tuple|Index)\(|<\w*Array>)")
_TOKEN = re.compile(
    r"""\s*+(?:
        [uU]?"(?P<double>[^"\\]*+(?:\\.[^"\\]*+)*)"
      | [uU]?'(?P<single>[^'\\]*+(?:\\.[^'\\]*+)*)'
      | (?P<call>(?:\w+\.)?(?:array|list|tuple|Index|str_)\()
      | (?P<about>dtype=(?:[\w.]+|'[^']*'|"[^"]*")|shape=\([\d,\ ]*\)|<\w*Array>|Length:\ \d+,\ dtype:\ [\w\[\]]+)
      | (?P<number>[-+]?\.?\d[\d.eE_+-]*+)
      | (?P<odd>[{}:]|[bB](?=["'])|\.\.\.|(?:True|False|-?inf)\b)  # in no list of texts
      | (?P<open>[\[(])
      | (?P<close>[\])])
      | (?P<comma>,)
      | (?P<word>[^\s\[\](){}:,'"]++)
    )""",
    re.VERBOSE | re.DOTALL,
)
_SPACES = " \t\r\n"
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U(00(?:0[0-9a-fA-F]|10)[0-9a-fA-F]{4})|(.))", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "v": "\v", "a": "\a", "0": "\0", "\n": ""}


def read_list(text: str) -> list[str] | None:
    """Return the texts of a list, without those that are null or nan; a text that is no list is a list of itself.

    Args:
        text: a list as JSON, Python, numpy or pandas write it, or other text.

    Returns:
        None if it is a list of anything but texts, a nested one, or one of which a part was left out.
    """
    if not _BEGINS.match(text):
        return [text] if text.strip() else []
    try:
        values = json.loads(text, parse_constant=lambda name: None if name == "NaN" else 0)
    except (ValueError, RecursionError):
        return _printed(text)
    found = [value for value in values if value is not None]
    return found if all(isinstance(value, str) for value in found) else None


def _printed(text: str) -> list[str] | None:
    """Read a list that is not JSON: elements may be separated by spaces, and calls may be around it."""
    reading, at = _Reading(), 0
    while token := _TOKEN.match(text, at):
        glued = text[at] not in _SPACES
        at, kind = token.end(), str(token.lastgroup)
        if not reading.takes(kind, token[kind], glued):
            return [text]
    if text.lstrip().startswith("(") and not reading.is_tuple():
        return [text]
    if not reading.closed or text[at:].strip():
        return None if reading.texts else [text]  # of a list, the end is missing
    return None if reading.refused else reading.texts


class _Reading:
    """What has been read of a printed list."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.refused = self.closed = False
        self._within: list[str] = []  # brackets and calls that are open
        self._brackets = self._commas = self._nulls = 0
        self._last = ""  # kind of token

    def takes(self, kind: str, value: str, glued: bool) -> bool:
        """Add a token; return False if it shows that the text is no list.

        Args:
            kind: a group of `_TOKEN`.
            value: the token.
            glued: whether no space is before it.
        """
        before, self._last = self._last, kind
        if self.closed or kind == "about":
            return kind == "about"
        if kind in {"double", "single"}:
            self.texts.append(_unescaped(value))
            self.refused |= glued and before in {"double", "single", "odd"}
            return bool(self._within) and not (glued and before == "number")  # a unit of length: 6" x 4"
        if kind == "word":
            self._nulls += 1
            return bool(self._within) and not present(value)
        if kind == "close":
            return self._closes(value)
        if kind in {"open", "call"}:
            self.refused |= kind == "open" and self._brackets > 0
            self._brackets += kind == "open"
            self._within.append(value if kind == "open" else "(")
        self._commas += kind == "comma"
        self.refused |= kind in {"number", "odd"}
        return True

    def is_tuple(self) -> bool:
        """Whether what is in parentheses is a tuple, which has a comma or is empty."""
        anything = bool(self.texts or self._nulls)
        return anything if self._commas else not (anything or self.refused)

    def _closes(self, value: str) -> bool:
        matches = bool(self._within) and self._within.pop() == ("[" if value == "]" else "(")
        self.closed = not self._within
        return matches


def _unescaped(text: str) -> str:
    if "\\" not in text:
        return text
    plain = _ESCAPE.sub(_character, text)
    return plain.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # joins escaped surrogate pairs


def _character(escape: re.Match[str]) -> str:
    if code := escape[1] or escape[2] or escape[3]:
        return chr(int(code, 16))
    return _ESCAPED.get(escape[4], escape[4] if escape[4] in "\"'\\/" else escape[0])
