"""Fail if an output of a data stage has a different hash than in the committed dvc.lock."""

import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML

MODEL_STAGES = ("train", "evaluate", "validate_predictions")  # their floats differ between processors


def data_outs(text: str) -> dict[str, str]:
    """Return the hashes of the outputs of data stages, by path."""
    stages = YAML(typ="safe").load(text)["stages"]
    return {
        out["path"]: out["md5"] for name, stage in stages.items() if name not in MODEL_STAGES for out in stage["outs"]
    }


committed = data_outs(
    subprocess.run(["git", "show", "HEAD:dvc.lock"], check=True, capture_output=True, text=True).stdout
)
computed = data_outs(Path("dvc.lock").read_text())
if not committed:
    sys.exit("the committed dvc.lock has no data stage")
changed = sorted(path for path in committed | computed if committed.get(path) != computed.get(path))
if changed:
    sys.exit(f"these outputs differ from the committed dvc.lock: {', '.join(changed)}")
print(f"{len(computed)} data outputs have the hashes in the committed dvc.lock")
