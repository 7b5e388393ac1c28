"""What edits cost on this machine: engines side by side, against the arithmetic that they do and what it could do.

`measure` times one editor. `report` is all that `hspace bench` says: what `timing` measures in rounds, what `counting`
counts, what matrix products reach here (`peak`), what a fresh process pays (`startup`), and where (`machine`); `plot`
draws it.
"""

from .timing import PERCENTILES, compare, measure

__all__ = ["PERCENTILES", "compare", "measure"]
