"""How a process of compaction takes and gives back memory. Rows come and go by the ten megabytes, batch after batch."""

import ctypes
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
