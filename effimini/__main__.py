"""The program `effimini`, also as `python -m effimini`, for environments whose scripts are not on the path.

Input: the arguments of the command line. Output: that of `effimini.cli`. Guarantees: Ctrl-C and SIGTERM end it with one
line and without a traceback, also while modules are imported.
"""

import signal
import sys


def main() -> None:
    """Run the command line."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C, so that nothing is left half-written
    try:
        from effimini import cli  # noqa: PLC0415 -- takes a third of a second, in which Ctrl-C may come

        cli.main()
    except KeyboardInterrupt:
        sys.stderr.write("effimini: stopped\n")
        sys.exit(128 + signal.SIGINT)
    finally:  # no traceback of modules that Python is taking apart
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


if __name__ == "__main__":
    main()
