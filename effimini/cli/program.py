"""The program: what holds for all commands.

Input: the arguments of the command line. Output: the log on stderr, the exit code. Guarantees: a user error ends with a
one-line message and exit code 2, Ctrl-C and SIGTERM with one line that says what is kept.
"""

import atexit
import logging
import signal
import sys
import traceback
from typing import Annotated, Any

import typer

from effimini.cli.common import printable_lines
from prep.core import files, open_files
from prep.core.errors import UserError, of_system, printable

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
INTERRUPTED = 128 + signal.SIGINT  # exit code
KEPT = {  # by a stage that is stopped; the others begin again, and keep their earlier output
    "download": "the bytes of raw files in the local store (source.keep_raw) and earlier tables",
    "fetch": "all fetched images",
    "shard": "the tars in the local store and earlier shards",
}


def main() -> None:
    """Run the command line."""
    open_files.raise_limit()
    handler = logging.StreamHandler()
    handler.setFormatter(_PrintableFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    sys.excepthook = _print_traceback
    # they log every request, with signed URLs, and where they find credentials
    for library in ("httpx", "httpx2", "aiobotocore", "botocore"):
        logging.getLogger(library).setLevel(logging.WARNING)
    logging.getLogger("huggingface_hub").propagate = False  # it has its own handler
    logging.getLogger("torch").setLevel(logging.WARNING)  # it counts its caches when it ends
    files.ensure_home()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C, so that nothing is left half-written
    try:
        app()
    except SystemExit as ended:
        if type(ended) is SystemExit and ended.code == INTERRUPTED:  # a training says more
            kept = next((KEPT[word] for word in sys.argv[1:] if word in KEPT), "finished outputs and the local store")
            sys.stderr.write(f"effimini: stopped; {kept} are kept, run the same command to go on\n")
            if dask := sys.modules.get("distributed.deploy.spec"):
                atexit.unregister(dask.close_clusters)  # it prints a traceback if the workers were just starting
        raise
    except (UserError, OSError, ExceptionGroup) as error:
        message = error if isinstance(error, UserError) else of_system(error)
        if message is None:
            raise
        sys.stderr.write(f"effimini: {printable(str(message))}\n")
        sys.exit(2)


class _PrintableFormatter(logging.Formatter):
    """Formats messages, which may quote servers and files, without control characters."""

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))


def _print_traceback(*error: Any) -> None:
    sys.stderr.write(printable_lines("".join(traceback.format_exception(*error))))


def _print_version(wanted: bool) -> None:
    if wanted:
        from effimini import __version__

        typer.echo(f"effimini {__version__}")
        raise typer.Exit


@app.callback()
def of_all_commands(
    _: Annotated[
        bool, typer.Option("--version", help="Print the version and end.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Prepare Amazon Reviews 2023 as shards, and train a compact image + text model on them."""
