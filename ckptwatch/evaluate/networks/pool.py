"""The threads in which images are resized, shared by all networks of this process."""

from concurrent.futures import ThreadPoolExecutor
from functools import cache

from ckptwatch.evaluate.images import DECODERS


@cache
def pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(DECODERS, thread_name_prefix="prepare")
