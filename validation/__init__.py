"""Validation of the tables that the stages write: Great Expectations suites, row accounting and gates."""
