"""How a process of compaction takes and gives back memory. Rows come and go by the ten megabytes, batch after batch."""

import ctypes
import sys
import threading
from typing import Final

import pyarrow as pa

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""Of glibc's malloc.h."""
_KEPT: Final = 32 << 20
_LARGE: Final = 32 << 20
"""The most that glibc takes."""


def keep_for_reuse() -> None:
    """Let this process use the memory of one batch for the next, instead of giving it back and asking for it again.

    The pages that the kernel clears anew for each batch cost a fifth of the CPU otherwise. Arrow takes its memory from
    glibc too, as the package asks for before pyarrow is imported: its own allocator ends up holding half as much again.
    Without glibc nothing is changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for name, value in ((_M_MMAP_THRESHOLD, _LARGE), (_M_TRIM_THRESHOLD, _KEPT), (_M_ARENA_MAX, 1)):
            mallopt(name, value)


def give_back() -> None:
    """Let go of what is not in use, when other work begins."""
    pa.default_memory_pool().release_unused()


class _NoPandas:
    """A finder of modules that does not find pandas, in the thread that made it."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def find_spec(self, name: str, *_: object) -> None:
        if name == "pandas" and threading.get_ident() == self._thread:
            raise ModuleNotFoundError("left out", name=name)


def leave_pandas_out() -> None:
    """Keep pyarrow from importing pandas, which it tries once, when the first array is made: 33 MB and 0.3 s of CPU.

    From then on pyarrow does not know the nulls of pandas: only for processes that are ours alone, and have no transform.
    Does nothing where pandas is imported already.
    """
    if "pandas" in sys.modules:
        return
    blind = _NoPandas()
    sys.meta_path.insert(0, blind)
    try:
        pa.array([0])
    finally:
        sys.meta_path.remove(blind)


def knows_pandas() -> bool:
    """Whether arrays can be made of what pandas holds, in this process."""
    import pandas as pd

    try:
        return bool(pa.array([pd.NA], pa.string(), from_pandas=True).null_count)
    except pa.ArrowException:
        return False
