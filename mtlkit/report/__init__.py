"""Tables, figures and the page, made from the result store alone. Imports no torch.

Data moves one way: ``blocks`` and ``frame`` (store to tidy frames) -> ``summary`` (rows of a table,
by ``statistics``, and ``run_warnings``) -> ``tables``, ``verdicts``, ``answer`` and ``figures``
(which also reads ``probe_frames``, as ``experts`` and ``expert_table`` do) -> ``page``; ``build``
writes the files. ``result_rows`` has the same numbers for ``mtlkit report --json``, and ``compare``
those of two folders for ``mtlkit compare``.
"""

from mtlkit.report.build import ReportFiles, write_report
from mtlkit.report.result_rows import rows

__all__ = ["ReportFiles", "rows", "write_report"]
