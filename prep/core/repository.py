"""The name of a repository on the Hugging Face hub: OWNER/NAME."""

import re

NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
