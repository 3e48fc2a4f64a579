import threading
from collections.abc import Iterator

import pytest

from pipeline.prefetching import prepared


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_results_come_in_order(threads: int) -> None:
    assert list(prepared(lambda item: item * item, range(20), threads)) == [
        item * item for item in range(20)
    ]


@pytest.mark.parametrize("threads", [1, 3])
def test_no_more_than_two_a_thread_are_prepared_ahead(threads: int) -> None:
    asked = []

    def items() -> Iterator[int]:
        for item in range(1000):
            asked.append(item)
            yield item

    results = prepared(lambda item: item, items(), threads)
    for expected in range(5):
        assert next(results) == expected
        assert len(asked) == expected + 2 * threads + 1


def test_an_error_reaches_who_asks_for_that_result() -> None:
    results = prepared(lambda item: 1 // (item - 2), [0, 1, 2, 3], threads=2)
    assert [next(results), next(results)] == [-1, -1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_threads_end_with_the_one_who_asks() -> None:
    results = prepared(lambda item: item, range(1000), threads=3)
    next(results)
    del results
    for thread in threading.enumerate():
        if thread.name.startswith("prepared"):
            thread.join(10)
            assert not thread.is_alive()
