"""How a process that computes with models holds its memory: freed pages stay, caches are bounded.

Freed memory: glibc unmaps what is freed at the top of its heap, and the next step has the system
clear the same pages again: a tenth of a training step's time. It also gives each thread a heap of
its own, so the backward pass, which has its own thread, would find nothing of what the forward pass
freed.

Caches: oneDNN keeps 1,024 compiled products, one for each shape, and the layer of torch above it
as many again; a product is a third of a megabyte. Batches have ever new shapes, so a scoring
process grew by 0.6 GB. A layer's products come again in the next layer, hardly in the next batch.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import os

from gencls_core.attention import QUERIES_PER_BLOCK

__all__ = ["MOST_PRODUCTS", "hand_back_memory", "products_of_a_layer", "settle_memory"]

MOST_PRODUCTS = 128
"""What training keeps, whose backward pass has two more of each; scoring keeps no more."""

# malloc.h of glibc.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGEST_MMAP_THRESHOLD = 32 * 2**20
_NEVER = -1

_LINEAR_PRODUCTS = 12
"""At most, of a layer and a head."""
_PRODUCTS_ABOVE_ONEDNN = 8
"""Of torch's layer: to find one in oneDNN's cache takes 0.02 ms, to compile it 0.2 to 0.7."""


def products_of_a_layer(context: int | None) -> int:
    """Give how many shapes of products a layer has when it reads `context` tokens at once.

    At most MOST_PRODUCTS, so that a model of very long texts has a bound as well; so many, too,
    where the context is not known.
    """
    if not context:
        return MOST_PRODUCTS
    blocks = math.ceil(context / max(QUERIES_PER_BLOCK.values()))
    return min(MOST_PRODUCTS, _LINEAR_PRODUCTS + 2 * blocks)


def settle_memory(products: int) -> None:
    """Keep freed memory and bound the caches; before the first product, and the first call counts.

    It holds for this process and those that it starts. What the environment says of the caches is
    heeded. Nothing is done to the heap where the C library is not glibc.

    Args:
        products: how many oneDNN keeps compiled.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(products))
    os.environ.setdefault("LRU_CACHE_CAPACITY", str(_PRODUCTS_ABOVE_ONEDNN))
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)


def hand_back_memory() -> None:
    """Give the system what is free, at the end of a piece of work: a worker without any waits with
    all the memory that its last one took, while others are planned to have it."""
    gc.collect()  # a trainer refers to itself
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
