"""Execution of outputs/python_interface.ipynb. It needs `pip install nbclient ipykernel matplotlib-inline`."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).resolve().parents[1] / "outputs" / "python_interface.ipynb"
MAX_BYTES = 300_000
TIMEOUT_SECONDS = 600  # of a cell


def main() -> None:
    """Run all cells in an empty directory, and write their outputs into the notebook.

    Raises SystemExit for a large file.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebook", type=Path, nargs="?", default=NOTEBOOK)
    path = parser.parse_args().notebook
    content = execute(path)
    if len(content.encode()) > MAX_BYTES:
        raise SystemExit(f"{path}: {len(content):,} bytes, more than {MAX_BYTES:,}. Show fewer images.")
    path.write_text(content, encoding="utf-8")


def execute(path: Path) -> str:
    """Return the content of the notebook with new outputs."""
    import nbformat
    from nbclient import NotebookClient

    notebook: Any = nbformat.read(path, as_version=4)
    # Commands that runs print then need no path.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    with tempfile.TemporaryDirectory() as directory:
        resources = {"metadata": {"path": directory}}
        NotebookClient(notebook, timeout=TIMEOUT_SECONDS, kernel_name="python3", resources=resources).execute()
    for cell in notebook.cells:
        cell.metadata.clear()  # times of execution
        if cell.cell_type == "code":  # of a terminal, for example warnings
            cell.outputs = [output for output in cell.outputs if output.output_type != "stream"]
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    text: str = nbformat.writes(notebook)
    return text.replace(f"{directory}{os.sep}", "") + "\n"


if __name__ == "__main__":
    main()
