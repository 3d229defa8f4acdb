"""What the commands share: errors that one line explains, and where files go."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


class CommandError(Exception):
    """An error that its message explains to the person who gave the command."""


@contextlib.contextmanager
def whole_folder(out: Path, force: bool) -> Iterator[Path]:
    """A scratch folder whose files move to `out` only if all went well.

    Args:
        out: The folder to write. It is made if it is missing.
        force: Whether it may hold files already; those of other names stay.

    Yields:
        The scratch folder, inside `out` so that the moves cannot fail half-way for
        want of space.
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
