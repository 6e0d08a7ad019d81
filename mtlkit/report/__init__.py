"""Tables, figures and the page, made from the result store alone. Imports no torch.

Data moves one way: ``frame`` and ``blocks`` (store to tidy frames) -> ``summary`` (rows of a table,
by ``statistics``) -> ``tables``, ``words`` and ``figures`` -> ``page``; ``build`` writes the files.
"""

from mtlkit.report.build import ReportFiles, write_report
from mtlkit.report.result_rows import rows

__all__ = ["ReportFiles", "rows", "write_report"]
