"""The order of pairs and the learning rate, as functions of the seed and the step."""

import itertools

import pytest

from spr.training.schedule import BUCKET, batches_of_epoch, learning_rate, steps_of_training

LENGTHS = [100 + 37 * k % 91 for k in range(23)]


def steps(**changes):
    options = {
        "batch_size": 2,
        "batches_per_step": 3,
        "epochs": 2,
        "max_steps": None,
        "seed": 0,
        **changes,
    }
    return steps_of_training(LENGTHS, **options)


def test_an_epoch_has_each_pair_once_and_one_smaller_batch_at_most():
    batches = batches_of_epoch(LENGTHS, 4, seed=1, epoch=0)
    assert sorted(k for batch in batches for k in batch) == list(range(23))
    assert sorted(map(len, batches)) == [3, 4, 4, 4, 4, 4]  # 23 = 5 · 4 + 3


def test_pairs_of_a_batch_are_neighbours_in_length():
    # All 23 pairs are one bucket: sorted by length, the batches cover ranges that do not overlap.
    spans = sorted((min(LENGTHS[k] for k in b), max(LENGTHS[k] for k in b)) for b in batches_of_epoch(LENGTHS, 4, 1, 0))
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))


def test_more_than_a_bucket_is_still_covered_once():
    lengths = [k % 17 for k in range(3 * BUCKET + 5)]
    batches = batches_of_epoch(lengths, 2, seed=1, epoch=0)
    assert sorted(k for batch in batches for k in batch) == list(range(len(lengths)))


def test_epochs_and_seeds_have_orders_of_their_own_and_the_same_seed_the_same():
    first = batches_of_epoch(LENGTHS, 4, seed=1, epoch=0)
    assert first == batches_of_epoch(LENGTHS, 4, seed=1, epoch=0)
    assert first != batches_of_epoch(LENGTHS, 4, seed=1, epoch=1)
    assert first != batches_of_epoch(LENGTHS, 4, seed=2, epoch=0)


def test_an_epochs_last_step_has_the_batches_that_are_left():
    # 23 pairs are 12 batches of 2 at most, four steps of 3 an epoch; with 5 a step 5, 5 and 2.
    assert [len(step) for step in steps()] == [3] * 8
    assert [len(step) for step in steps(batches_per_step=5)] == [5, 5, 2] * 2


def test_the_most_steps_end_a_training_and_change_nothing_before():
    assert steps(max_steps=5) == steps()[:5]
    assert steps(max_steps=99) == steps()


def test_processes_and_accumulation_share_one_order():
    # The order depends on how many batches a step has, not on who computes them.
    flat = [batch for step in steps(batches_per_step=6) for batch in step]
    assert flat == [batch for step in steps(batches_per_step=1) for batch in step]


def rates(count, **options):
    return [round(learning_rate(k, count, **{"peak": 2.0, **options}), 6) for k in range(count)]


def test_the_line_falls_in_equal_parts_to_one_part_above_zero():
    # One of five steps rises, to the peak; then 1, ¾, ½ and ¼ of it.
    assert rates(5, warmup=0.2, schedule="linear") == [2.0, 2.0, 1.5, 1.0, 0.5]


def test_the_cosine_without_warm_up_begins_at_the_peak():
    # (1 + cos(πk / 4)) for k = 0 to 3: 2, 1.707107, 1, 0.292893
    assert rates(4, warmup=0.0, schedule="cosine") == [2.0, 1.707107, 1.0, 0.292893]


def test_the_constant_rate_stays_once_it_has_risen():
    assert rates(6, warmup=0.5, schedule="constant") == [0.666667, 1.333333, 2.0, 2.0, 2.0, 2.0]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_a_single_step_has_the_peak(schedule):
    assert rates(1, warmup=0.03, schedule=schedule) == [2.0]
    assert rates(1, warmup=0.0, schedule=schedule) == [2.0]


def test_no_step_is_taken_at_zero():
    assert min(rates(50, warmup=0.1, schedule="cosine")) > 0
