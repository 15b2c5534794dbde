"""Batches: order, filling, halving, and preparation ahead of time."""

import threading

import pytest
import torch

from spr.config import ScorerConfig
from spr.models.batching import Batcher, DeviceMemoryError, RefilledBatcher, prepared


def test_results_come_in_the_order_of_the_items_whatever_their_lengths():
    seen = []

    def work(batch):
        seen.append(list(batch))
        return [text.upper() for text in batch]

    batcher = Batcher(work, 2, length=len)
    assert batcher(["a", "bbb", "cc", "dddd", "e"]) == ["A", "BBB", "CC", "DDDD", "E"]
    assert seen == [["dddd", "bbb"], ["cc", "a"], ["e"]]


def test_out_of_memory_halves_the_batch_and_the_size_that_worked_is_kept():
    sizes = []

    def work(batch):
        sizes.append(len(batch))
        if len(batch) > 3:
            raise torch.OutOfMemoryError("full")
        return [item + 1 for item in batch]

    batcher = Batcher(work, 8)
    assert batcher(list(range(10))) == list(range(1, 11))
    assert batcher([5, 6]) == [6, 7]
    assert sizes == [8, 4, 2, 2, 2, 2, 2, 2]


def test_a_single_item_that_does_not_fit_is_an_error_that_says_how_to_fix_it():
    def work(_):
        raise torch.OutOfMemoryError("full")

    with pytest.raises(DeviceMemoryError, match=r"A single item[\s\S]*fix:"):
        Batcher(work, 4)([1, 2, 3])


class FakeMemory:
    """A device that holds ``capacity`` items."""

    def __init__(self, capacity):
        self.capacity, self.last = capacity, 0

    def start(self):
        self.last = 0

    def room(self):
        return self.capacity / self.last


@pytest.mark.parametrize(
    ("capacity", "sizes"),
    [
        # Doubled while the batch would fit 2.5 times: 2 and 4 of 12 items do, 8 do not.
        (12, [2, 4, 8, 8, 8]),
        # At most 32 times the size at the beginning.
        (10**9, [2, 4, 8, 16, 32, 64, 64, 64]),
        (4, [2, 2, 2]),
    ],
)
def test_batches_grow_while_the_memory_allows_it(capacity, sizes):
    memory, seen = FakeMemory(capacity), []

    def work(batch):
        seen.append(len(batch))
        memory.last = len(batch)
        return batch

    batcher = Batcher(work, 2, memory=memory)
    items = list(range(sum(sizes)))
    assert batcher(items) == items
    assert seen == sizes


def test_batches_that_ran_out_of_memory_do_not_grow_again():
    memory, seen = FakeMemory(100), []

    def work(batch):
        seen.append(len(batch))
        memory.last = len(batch)
        if len(batch) > 5:
            raise torch.OutOfMemoryError("full")
        return batch

    batcher = Batcher(work, 2, memory=memory)
    assert batcher(list(range(18))) == list(range(18))
    assert seen == [2, 4, 8, 4, 4, 4]


def test_a_part_of_a_batch_does_not_let_the_batches_grow():
    memory = FakeMemory(1000)
    memory.last = 1
    batcher = Batcher(lambda batch: batch, 4, memory=memory)
    batcher([1, 2, 3])
    assert batcher.size == 4


def test_auto_is_the_default_on_a_cpu():
    section = ScorerConfig(batch_size="auto")
    batcher = Batcher.of(lambda batch: batch, section, torch.device("cpu"), factor=8)
    assert (batcher.size, batcher.memory) == (8 * 64, None)
    assert Batcher.of(lambda batch: batch, section, torch.device("cuda", 0)).memory.device.type == "cuda"
    assert Batcher.of(lambda batch: batch, ScorerConfig(batch_size=7), torch.device("cuda", 0)).memory is None


def test_other_errors_are_not_caught():
    def work(_):
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape"):
        Batcher(work, 4)([1])


def test_items_are_prepared_in_order_while_the_caller_works():
    names = []

    def work(item):
        names.append(threading.current_thread().name)
        return 2 * item

    with prepared(work, [1, 2, 3]) as ready:
        assert [item.result(timeout=10) for item in ready] == [2, 4, 6]
    assert len(names) == 3
    assert threading.main_thread().name not in names


def test_a_preparation_error_is_raised_at_its_item_and_later_items_are_not_started():
    started = []
    go_on = threading.Event()

    def work(item):
        started.append(item)
        if item == 0:
            raise ValueError("torn")
        go_on.wait(10)

    def use():
        with prepared(work, range(100)) as ready:
            try:
                ready[0].result(timeout=10)
            finally:
                go_on.set()

    with pytest.raises(ValueError, match="torn"):
        use()
    assert len(started) < 100


def test_refilled_work_gets_all_items_and_its_results_are_put_in_order():
    seen = []

    def work(items, size):
        seen.append((list(items), size))
        yield from ((k, items[k].upper()) for k in (2, 0, 1))

    assert RefilledBatcher(work, 2, length=len)(["a", "bbb", "cc"]) == ["A", "BBB", "CC"]
    assert seen == [(["bbb", "cc", "a"], 2)]


def test_refilled_work_that_gives_no_result_for_some_items_is_an_error():
    def work(items, _):
        yield 1, items[1]

    with pytest.raises(RuntimeError, match="no result for 2 of 3 items"):
        RefilledBatcher(work, 2)(["a", "b", "c"])


def test_out_of_memory_halves_refilled_work_and_what_was_finished_is_kept():
    seen = []

    def work(items, size):
        seen.append((list(items), size))
        for k, item in enumerate(items):
            if size > 2 and k == 3:
                raise torch.OutOfMemoryError("full")
            yield k, item + 1

    batcher = RefilledBatcher(work, 8)
    assert batcher(list(range(10))) == list(range(1, 11))
    # With eight at once, three were finished, and with four, the next three.
    assert seen == [(list(range(10)), 8), (list(range(3, 10)), 4), (list(range(6, 10)), 2)]
    assert batcher.size == 2


@pytest.mark.parametrize(
    ("capacity", "batches"),
    [
        # The first batch of 2 items shows that 12 have room, the next that 8 have not enough for 16.
        (12, [(2, 2), (4, 4), (8, 8), (26, 8)]),
        (4, [(2, 2), (38, 2)]),
    ],
)
def test_refilled_batches_grow_until_a_full_one_shows_that_more_would_not_fit(capacity, batches):
    memory, seen = FakeMemory(capacity), []

    def work(items, size):
        seen.append((len(items), size))
        memory.last = min(len(items), size)
        yield from enumerate(items)

    batcher = RefilledBatcher(work, 2, memory=memory)
    assert batcher(list(range(40))) == list(range(40))
    assert seen == batches
