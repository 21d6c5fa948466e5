"""The folder of a model: a local one, or that of a model on the hub, which is downloaded.

Input: a path or OWNER/NAME, and a revision. Output: a local folder. Guarantees: only the files that are asked for are
downloaded, and no code is run; a mistyped path is an error and asks no hub.
"""

from collections.abc import Sequence
from pathlib import Path

from prep.core.errors import UserError
from prep.core.repository import NAME

_NO_OWNERS = {"models", "datasets", "spaces"}  # the hub's own, and so a folder that does not exist (yet)


def check_name(name: Path) -> None:
    """Check that what is no folder here may be the name of a model on the hub.

    Raises:
        UserError: it is a mistyped path.
    """
    if not NAME.fullmatch(str(name)) or name.parts[0] in _NO_OWNERS or Path(name.parts[0]).exists():
        raise UserError(
            f"{name} does not exist; run `dvc repro train` to train a model, correct the path, or name a model on "
            "the hub, OWNER/NAME"
        )


def model_folder(name: str | Path, revision: str | None, files: Sequence[str]) -> Path:
    """Return the folder of a model.

    Args:
        name: a folder, or the name of a model on the hub.
        revision: a branch, tag or commit of the model on the hub; None is its main branch.
        files: the files of a model; the first is there in every model.

    Raises:
        UserError: there is neither such a folder nor such a model, or a revision is given with a folder.
    """
    folder = Path(name)
    if folder.exists():
        if revision:
            raise UserError(
                f"revision is {revision!r} but {folder} is a folder here, which has none; leave one of them out"
            )
        return folder
    check_name(folder)
    from shards import hub  # noqa: PLC0415 -- only a name needs it

    try:
        found = hub.download(str(name), revision, files)
    except UserError as error:
        raise UserError(f"there is no folder {folder} here, and {error}") from error
    if not (found / files[0]).exists():
        raise UserError(f"{name} on the hub has no {files[0]}, so it is not a model of EffiMini; correct the name")
    return found
