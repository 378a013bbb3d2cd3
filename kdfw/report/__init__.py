"""The report and the model card of a run."""

from __future__ import annotations

from pathlib import Path

from kdfw.errors import DataError

__all__ = ["write_report"]


def write_report(*runs: Path, out: Path | None = None) -> Path | None:
    """Write one self-contained `report.html` about one or more run folders, side by side.

    Args:
        runs: run folders; the report shows whatever they hold so far.
        out: the file; default: `report.html` in the first run folder.
    Returns: the file, or None when there is nothing to report on (no run, or a folder without any file of a run).
    Raises: DataError for a path that is no folder; ArtifactError when the file cannot be written.
    """
    from kdfw.files import write_atomic
    from kdfw.report.folder import read_run
    from kdfw.report.page import page

    for run in runs:
        if not run.is_dir():
            raise DataError(
                f"{run}: no such run folder; `kdfw run` writes one, below runs/ unless --out says otherwise"
            )
    known = ("manifest.json", "plan.json", "recipe.yaml")
    found = [run for run in runs if any((run / name).is_file() for name in known)]
    if not found:
        return None
    path = out or found[0] / "report.html"
    write_atomic(path, page([read_run(run) for run in found]))
    return path
