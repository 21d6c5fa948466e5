"""Fail when a data stage's output has another hash than in the committed dvc.lock."""

import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML

MODEL_STAGES = ("train", "evaluate", "validate_predictions")  # floats differ from one processor to the next


def data_outs(text: str) -> dict[str, str]:
    """Return the hash of each output of a data stage, by path."""
    stages = YAML(typ="safe").load(text)["stages"]
    return {
        out["path"]: out["md5"] for name, stage in stages.items() if name not in MODEL_STAGES for out in stage["outs"]
    }


committed = data_outs(
    subprocess.run(["git", "show", "HEAD:dvc.lock"], check=True, capture_output=True, text=True).stdout
)
made = data_outs(Path("dvc.lock").read_text())
if not committed:
    sys.exit("the committed dvc.lock holds no data stage")
changed = sorted(path for path in committed | made if committed.get(path) != made.get(path))
if changed:
    sys.exit(f"other bytes than in the committed dvc.lock: {', '.join(changed)}")
print(f"{len(made)} data outputs have the bytes of the committed dvc.lock")
