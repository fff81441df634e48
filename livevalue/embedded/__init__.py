"""Kafka and Valkey on this machine, behind one context manager, for trying out and for tests.

>>> from livevalue.embedded import Stack, StackError
"""

from __future__ import annotations

from livevalue.embedded.errors import StackError
from livevalue.embedded.stack import Stack

__all__ = ["Stack", "StackError"]
