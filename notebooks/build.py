"""Make the notebooks from the scripts beside this one, by running them.

    python notebooks/build.py              all, in full: some hours on two cores
    python notebooks/build.py 02 03        those alone
    python notebooks/build.py --quick      all on little data, in minutes, to try them

A script `NAME.py` in jupytext's percent format becomes `NAME.ipynb` with its outputs,
beside it or in the folder of `--out`; the folder is left alone by a quick run without
one. Needs `pip install -e ".[notebooks]"`.
"""

import argparse
import os
import time
from pathlib import Path

import jupytext
import nbclient

HERE = Path(__file__).parent


def build(script: Path, out: Path | None) -> None:
    """Run one script as a notebook."""
    notebook = jupytext.read(script)
    notebook.metadata = {
        "kernelspec": {
            "display_name": "Python 3",
            "language": "python",
            "name": "python3",
        }
    }
    client = nbclient.NotebookClient(
        notebook, timeout=None, resources={"metadata": {"path": str(HERE)}}
    )
    start = time.perf_counter()
    client.execute()
    for cell in notebook.cells:
        # When a cell ran, and what a library had to say in passing, is no result.
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if not _in_passing(o)]
    if out is not None:
        jupytext.write(notebook, out / f"{script.stem}.ipynb", fmt="ipynb")
    print(f"{script.stem}: {time.perf_counter() - start:.0f} s", flush=True)


def _in_passing(output: dict) -> bool:
    if output.get("name") == "stderr":
        return True
    return output.get("text", "").startswith(("INFO:tensorflow", "WARNING:tensorflow"))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="the beginnings of names; default all")
    parser.add_argument("--quick", action="store_true", help="little data, few epochs")
    parser.add_argument("--out", type=Path, help="folder for the notebooks")
    arguments = parser.parse_args()
    scripts = [
        script
        for script in sorted(HERE.glob("[0-9][0-9]_*.py"))
        if script.stem.startswith(tuple(arguments.names) or "")
    ]
    if not scripts:
        parser.error(f"no notebook is called {' or '.join(arguments.names)}")
    out = arguments.out or (None if arguments.quick else HERE)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    if arguments.quick:
        os.environ["KERAS_TRAINKIT_QUICK"] = "1"
    for script in scripts:
        build(script, out)


if __name__ == "__main__":
    main()
