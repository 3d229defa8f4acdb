"""What the commands share: one-line errors and an all-or-nothing output folder."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


class CommandError(Exception):
    """An error whose message is shown to the user of the command, without traceback."""


@contextlib.contextmanager
def whole_folder(out: Path, force: bool) -> Iterator[Path]:
    """Provide a scratch folder whose files move to `out` only on success.

    Args:
        out: The output folder, created if it is missing.
        force: Whether `out` may already contain files. Files with other names are kept.

    Yields:
        The scratch folder. It is inside `out`, so moving the files cannot run out of
        disk space.
    """
    if out.exists() and not out.is_dir():
        raise CommandError(f"{out} is not a folder")
    if out.is_dir() and any(out.iterdir()) and not force:
        raise CommandError(f"{out} is not empty; --force writes into it all the same")
    missing = [p for p in (out, *out.parents) if not p.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".partial-", dir=out))
    except OSError as error:
        _remove_empty(missing)
        raise CommandError(f"cannot write to {out}: {error.strerror}") from None
    try:
        yield scratch
        # The report names the other files, so it comes last.
        for path in sorted(scratch.iterdir(), key=lambda p: p.suffix == ".md"):
            os.replace(path, out / path.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        _remove_empty(missing)


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()
