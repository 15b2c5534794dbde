"""Buffers of keys and values: rows that come and go hold what transformers' own cache holds."""

import pytest
import torch
from transformers import Qwen2Config
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from spr.models.describers import cache as cache_module
from spr.models.describers.cache import BufferedCache, why_not_buffered

HEADS, SIZE = 2, 4


def config(**settings):
    sizes = {"num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2}
    return Qwen2Config(**sizes, **settings)


def states(rows, tokens, seed):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(2, rows, HEADS, tokens, SIZE, generator=draw)


def prompts(rows, tokens, seed, **settings):
    """A cache of prompts, and what its first layer got."""
    cache, given = DynamicCache(config=config(**settings)), states(rows, tokens, seed)
    for layer in range(2):
        cache.update(given[0] + layer, given[1] - layer, layer)
    return cache, given


def write(cache, rows, seed):
    given = states(rows, 1, seed)
    cache.make_room()
    seen = [cache.update(given[0] + layer, given[1] - layer, layer) for layer in range(2)]
    return given, seen


def of_row(cache, seen, row):
    """Keys and values of a row in the first layer, without the columns before its start."""
    return [state[row, :, cache.starts[row] - cache.first :] for state in seen[0]]


def test_a_sequence_that_joins_later_ends_at_the_same_column():
    first, given = prompts(1, 5, seed=0)
    cache = BufferedCache(first, 3)
    cache.add(first, [0, 0], [5], 8)
    assert first.layers[0].keys is None  # its memory is free
    new, _ = write(cache, 2, seed=1)
    later, other = prompts(2, 3, seed=2)
    cache.add(later, [1], [1, 3], 8)  # the second prompt, of three tokens
    assert (cache.starts, cache.next, cache.get_seq_length()) == ([0, 0, 3], 6, 6)
    newer, seen = write(cache, 3, seed=3)
    for row in (0, 1):
        expected = torch.cat([given[:, 0], new[:, row], newer[:, row]], 2)
        assert torch.equal(torch.stack(of_row(cache, seen, row)), expected)
    assert torch.equal(torch.stack(of_row(cache, seen, 2)), torch.cat([other[:, 1], newer[:, 2]], 2))
    assert torch.equal(seen[1][1][2, :, 3:], torch.cat([other[1, 1], newer[1, 2]], 1) - 1)  # the second layer


def test_the_last_rows_take_the_place_of_those_that_leave():
    first, given = prompts(4, 2, seed=0)
    cache = BufferedCache(first, 4)
    cache.add(first, [0, 1, 2, 3], [2] * 4, 8)
    assert cache.remove([0, 2]) == ([0], [3])
    new, seen = write(cache, 2, seed=1)
    for row, prompt in ((0, 3), (1, 1)):
        assert torch.equal(seen[0][0][row], torch.cat([given[0, prompt], new[0, row]], 1))
    assert cache.remove([0, 1]) == ([], [])
    assert cache.starts == []


def test_rows_that_are_not_in_use_need_no_memory_while_prompts_are_read(monkeypatch):
    monkeypatch.setattr(cache_module, "LEAST_RELEASED", 0)
    first, given = prompts(4, 2, seed=0)
    cache = BufferedCache(first, 4)
    cache.add(first, [0, 1, 2, 3], [2] * 4, 8)
    cache.remove([0, 1])
    cache.release()
    assert {len(buffer) for layer in cache.layers for buffer in layer.buffers} == {2}
    later, other = prompts(1, 1, seed=2)
    cache.add(later, [0, 0], [1], 8)
    new, seen = write(cache, 4, seed=1)
    for row, prompt in ((0, 2), (1, 3)):
        assert torch.equal(torch.stack(of_row(cache, seen, row)), torch.cat([given[:, prompt], new[:, row]], 2))
    for row in (2, 3):
        assert torch.equal(torch.stack(of_row(cache, seen, row)), torch.cat([other[:, 0], new[:, row]], 2))
    cache.remove([0, 1, 2, 3])
    cache.release()
    assert not any(layer.buffers for layer in cache.layers)
    again, given = prompts(1, 3, seed=3)
    cache.add(again, [0], [3], 8)
    assert (cache.columns, cache.first, cache.next) == (11, 0, 3)
    new, seen = write(cache, 1, seed=4)
    assert torch.equal(torch.stack(of_row(cache, seen, 0)), torch.cat([given[:, 0], new[:, 0]], 2))


def test_little_memory_is_not_freed():
    first, _ = prompts(2, 2, seed=0)
    cache = BufferedCache(first, 2)
    cache.add(first, [0, 1], [2, 2], 8)
    cache.remove([0])
    cache.release()
    assert {len(buffer) for layer in cache.layers for buffer in layer.buffers} == {2}


def test_a_longer_prompt_moves_the_others_to_the_right():
    first, given = prompts(1, 2, seed=0)
    cache = BufferedCache(first, 2)
    cache.add(first, [0], [2], 1)
    longer, other = prompts(1, 7, seed=1)
    cache.add(longer, [0], [7], 1)
    assert (cache.starts, cache.next) == ([5, 0], 7)
    new, seen = write(cache, 2, seed=2)
    assert torch.equal(torch.stack(of_row(cache, seen, 0)), torch.cat([given[:, 0], new[:, 0]], 2))
    assert torch.equal(torch.stack(of_row(cache, seen, 1)), torch.cat([other[:, 0], new[:, 1]], 2))


def test_columns_that_no_row_needs_are_used_again_and_else_the_buffers_grow():
    first, _ = prompts(1, 40, seed=0)
    cache = BufferedCache(first, 2)
    cache.add(first, [0], [40], 2)
    for seed in range(2):
        write(cache, 1, seed)
    later, given = prompts(1, 3, seed=9)
    cache.add(later, [0], [3], 2)
    cache.remove([0])
    assert (cache.columns, cache.first) == (42, 39)
    new, seen = write(cache, 1, seed=10)
    assert (cache.columns, cache.first, cache.next) == (42, 0, 4)  # moved to the left
    expected = torch.cat([given[:, 0], new[:, 0]], 2)
    assert torch.equal(torch.stack(of_row(cache, seen, 0)), expected)
    for seed in range(11, 11 + 39):
        new, seen = write(cache, 1, seed)
        expected = torch.cat([expected, new[:, 0]], 2)
    assert cache.columns > 42
    assert torch.equal(torch.stack(of_row(cache, seen, 0)), expected)


def test_the_buffers_do_not_grow_beyond_what_the_longest_row_needs():
    first, _ = prompts(2, 40, seed=0)
    cache = BufferedCache(first, 3, limit=20)
    cache.add(first, [0, 1], [40, 30], 4)
    for seed in range(12):
        write(cache, 2, seed)
    later, other = prompts(1, 7, seed=30)
    cache.add(later, [0], [7], 4)
    expected = other[:, 0]
    for seed in range(12, 20):
        new, seen = write(cache, 3, seed)
        expected = torch.cat([expected, new[:, 2]], 2)
    assert cache.columns == 60
    cache.remove([0, 1])
    for seed in range(20, 32):
        new, seen = write(cache, 1, seed)
        expected = torch.cat([expected, new[:, 0]], 2)
    assert cache.columns == 60
    assert torch.equal(torch.stack(of_row(cache, seen, 0)), expected)


@pytest.mark.parametrize("by", [1, 7, 50])
def test_layers_with_a_window_keep_little_more_than_that(by):
    settings = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
    first, _ = prompts(1, 60, seed=0, **settings)
    cache = BufferedCache(first, 3)
    cache.add(first, [0], [60], 2)
    expected = {0: None}  # the windowed layer's keys of each row, from its second token on
    for seed in range(1, 100):
        if seed in (by, by + 1) and len(cache.starts) < 3:
            tokens = 3 if seed == by else 200  # one that is shorter, and one that moves the others to the right
            later, given = prompts(1, tokens, seed=1000 + seed, **settings)
            expected[len(cache.starts)] = given[0, 0] + 1
            cache.add(later, [0], [tokens], 2)
        if seed == 80:
            assert cache.remove([0]) == ([0], [2])
            expected = {0: expected[2], 1: expected[1]}
        new, seen = write(cache, len(cache.starts), seed)
        for row in expected:
            own = new[0, row] + 1
            expected[row] = own if expected[row] is None else torch.cat([expected[row], own], 1)
            last = expected[row][:, -5:]
            assert torch.equal(seen[1][0][row, :, -last.shape[1] :], last)
        assert seen[1][0].shape[2] == 5
        assert cache.get_mask_sizes(1, 1)[0] == 5
    assert cache.layers[1].buffers[0].shape[2] == 5 + 32
    assert cache.layers[0].buffers[0].shape[2] > 200


@pytest.mark.parametrize("tokens", [3, 9])
def test_layers_with_a_window_show_what_transformers_shows(tokens):
    settings = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
    theirs, _ = prompts(2, tokens, seed=0, **settings)
    same, _ = prompts(2, tokens, seed=0, **settings)
    cache = BufferedCache(same, 2)
    assert cache.is_sliding == theirs.is_sliding == [False, True]
    cache.add(same, [0, 1], [tokens] * 2, 2)
    for seed in range(1, 4):
        assert [cache.get_mask_sizes(1, layer) for layer in range(2)] == [
            theirs.get_mask_sizes(1, layer) for layer in range(2)
        ]
        new, seen = write(cache, 2, seed)
        for layer in range(2):
            expected = theirs.update(new[0] + layer, new[1] - layer, layer)
            assert all(torch.equal(a, b) for a, b in zip(seen[layer], expected, strict=True))


def test_states_of_linear_attention_move_with_their_rows(monkeypatch):
    monkeypatch.setattr(cache_module, "LEAST_RELEASED", 0)
    settings = {"layer_types": ["linear_attention", "full_attention"]}
    theirs = DynamicCache(config=config(**settings))
    state = torch.arange(6.0).view(3, 2, 1)
    theirs.update_conv_state(state, 0)
    theirs.update_recurrent_state(10 * state, 0)
    given = states(3, 2, seed=0)
    theirs.update(given[0], given[1], 1)
    cache = BufferedCache(theirs, 4)
    cache.add(theirs, [0, 0, 1, 2], [2] * 3, 4)
    assert cache.has_previous_state(0)
    cache.remove([1])
    assert torch.equal(cache.layers[0].recurrent_states[0], 10 * state[[0, 2, 1]])
    cache.update_recurrent_state(state, 0)
    cache.remove([0])
    cache.release()
    assert len(cache.layers[0].buffers["recurrent_states", 0]) == 2
    assert torch.equal(cache.layers[0].recurrent_states[0], state[[2, 1]])
    cache.update_recurrent_state(-state[:2], 0)
    assert torch.equal(cache.layers[0].buffers["recurrent_states", 0], -state[:2])


def test_other_caches_are_not_taken_over():
    assert why_not_buffered(DynamicCache(config=config())) is None
    both = EncoderDecoderCache(DynamicCache(config=config()), DynamicCache(config=config()))
    assert "EncoderDecoderCache" in why_not_buffered(both)
    assert "DynamicIndexedLayer" in why_not_buffered(DynamicCache(config=config(layer_types=["indexed_attention"] * 2)))
