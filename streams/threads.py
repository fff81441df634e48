"""One thread for each numeric library of a worker; imported before numpy loads.

Many small thread pools on few cores only wait for each other, and a worker scales by processes.
"""

from __future__ import annotations

import os

PINNED = {
    name: os.environ.setdefault(name, "1")
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
}
