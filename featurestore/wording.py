"""How a count stands in a line that people read."""

from __future__ import annotations


def counted(n: int, one: str, many: str = "") -> str:
    """A count of something, with its verb where one follows; without `many`, its plural is in s.

    >>> counted(1, "order"), counted(1200, "order")
    ('1 order', '1,200 orders')
    >>> counted(1, "snapshot waits", "snapshots wait"), counted(0, "row is left", "rows are left")
    ('1 snapshot waits', '0 rows are left')
    """
    return f"{n:,} {one if n == 1 else many or one + 's'}"
