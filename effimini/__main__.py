"""`python -m effimini` is the command `effimini`, for environments whose scripts are not on the path."""

from effimini.cli import main

main()
