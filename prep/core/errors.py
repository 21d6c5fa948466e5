"""What goes wrong, in words: a user's mistake, and the budget for rows that are set aside.

In: a library's error, or counts of rows by reason. Out: one sentence. Guaranteed: more rows set aside than the budget
allows stop the stage.
"""

from collections.abc import Mapping


class UserError(Exception):
    """A mistake its user can mend, as one sentence: what, where, the value found, what to do next.

    The command line prints it without a traceback and exits with code 2.
    """


def first_sentence(error: Exception) -> str:
    """Return the first sentence of a library's error, on one line, to stand within ours."""
    return " ".join(str(error).split()).split(". ")[0]


def check_budget(bad: Mapping[str, int], total: int, share: float, what: str, hint: str) -> None:
    """Stop when the bad rows are more than `share` of `total`.

    Args:
        bad: rows set aside, by reason.
        total: rows seen, good and bad.
        share: the budget, 0 to 1.
        what: the rows in words and where they are, "lines of meta_All_Beauty.jsonl" for example.
        hint: what the user can do next.

    Raises:
        UserError: the budget is spent.
    """
    count = sum(bad.values())
    if count > share * total:
        reasons = ", ".join(f"{reason} {n}" for reason, n in sorted(bad.items(), key=lambda r: (-r[1], r[0])))
        raise UserError(f"{count} of {total} {what} are unusable ({reasons}), over the budget of {share:.1%}; {hint}")
