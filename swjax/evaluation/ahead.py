"""Work on examples ahead of its turn, in threads."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from swjax.data.example import ExampleError, VideoExample

DECODED_AHEAD = 4
"""Videos that are decoded before they are asked for, each in a thread."""

Made = TypeVar("Made")


def work_ahead(
    examples: Iterable[VideoExample], work: Callable[[VideoExample], Made]
) -> Iterator[tuple[VideoExample, Made | ExampleError]]:
    """Examples in their order with what was made of them, or with what is wrong with them."""

    def attempt(example: VideoExample) -> Made | ExampleError:
        try:
            return work(example)
        except ExampleError as error:
            return error

    pool = ThreadPoolExecutor(DECODED_AHEAD)
    begun: deque[tuple[VideoExample, Future[Made | ExampleError]]] = deque()
    try:
        for example in examples:
            begun.append((example, pool.submit(attempt, example)))
            if len(begun) > DECODED_AHEAD:
                first, future = begun.popleft()
                yield first, future.result()
        while begun:
            first, future = begun.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)
