"""Checks over what the other rooms made: Great Expectations suites, the row funnel, the gates."""
