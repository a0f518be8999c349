"""The records of a run as a pandas frame, where pandas is installed."""

from __future__ import annotations

import os
from typing import Any

from burnish.runs import Run


def frame(folder: str | os.PathLike[str]) -> Any:
    """Return a run's log as a `pandas.DataFrame`: one row an iteration, one column a number.

    Args:
        folder: the run directory, which may be of a run that goes on.

    Returns:
        The frame, with the iteration as its index. Nested numbers have their path as a name, such
        as "rewards.aesthetic.mean".

    Raises:
        FileNotFoundError: `folder` holds no run.
        ImportError: pandas is not installed.

    Example:
        >>> frame("runs/jpeg")["rewards.compressibility.mean"].plot()              # doctest: +SKIP
    """
    try:
        import pandas
    except ImportError as error:
        raise ImportError(
            "burnish.frame makes a pandas frame, and pandas is not installed; run: pip install "
            "pandas, or read the records by burnish.Run.open(folder).records()"
        ) from error

    records = Run.open(folder).records()
    index = pandas.Index([record["iteration"] for record in records], name="iteration")
    table = pandas.json_normalize(records).set_index(index)
    return table.drop(columns="iteration", errors="ignore")
