"""What processes that compute ask of the C library's allocator."""

from __future__ import annotations

import ctypes

MIB = 2**20


def keep_freed_memory(most: int) -> None:
    """Has glibc keep so many bytes that a step or partition frees for the next, which would else be given page by page.

    On other C libraries nothing is done. Source: man 3 mallopt.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, top_pad, mmap_threshold = -1, -2, -3
        mallopt(trim_threshold, most)
        mallopt(top_pad, most // 8)
        mallopt(mmap_threshold, 32 * MIB)  # the most that it takes
