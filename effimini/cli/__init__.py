"""The command line: one command per pipeline stage, and commands that inspect, share and use the results.

Input: a command, the folder ``data/``, and ``params.yaml``, without which shards can still be looked at. Output: files,
a log on stderr, and on stdout only results that a program may parse. Guarantees: those of `effimini.cli.program`; a
command imports only what it needs, so that --help is fast.
"""

from effimini.cli import stages, project, shards, models  # isort: skip -- the help lists commands in this order
from effimini.cli.program import app, main

__all__ = ["app", "main", "models", "project", "shards", "stages"]
