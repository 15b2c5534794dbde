"""Pairs as tokens: counted before an image is read as they are after, and dropped where they can't be trained on."""

import dataclasses

import pytest
import torch

from spr.core.images import ImageProblem
from spr.core.reasons import TRAINING_REASONS
from spr.models.chat import user_turn
from spr.models.families import FAMILIES
from spr.training.encoding import context_length, plan_digest
from spr.training.pairs import trl_pairs
from spr.training.trainee import load_trainee
from spr.training.vision_cache import Features, MemoryFeatures

TRAINABLE = [name for name, family in FAMILIES.items() if family.trainable]


@pytest.fixture
def trainee_of(trainable_folder, settings, tmp_path):
    def make(model_type, **changes):
        folder, config = str(trainable_folder(model_type)), settings(**changes)
        return load_trainee(folder, config, torch.device("cpu"), features=tmp_path)

    return make


@pytest.fixture
def encoder(trainee_of):
    return trainee_of("llava_onevision").encoder


@pytest.fixture
def pairs(pairs_folder):
    return list(trl_pairs(pairs_folder))


@pytest.mark.parametrize("model_type", TRAINABLE)
def test_prompts_have_the_tokens_that_were_counted_and_answers_end_their_turn(model_type, trainee_of, pairs):
    encoder = trainee_of(model_type).encoder
    planned, dropped = encoder.plan(pairs, 4096)
    assert not dropped
    assert len(planned) == 6
    tokenizer = encoder.processor.tokenizer
    ends = {tokenizer.eos_token_id, *map(tokenizer.convert_tokens_to_ids, FAMILIES[model_type].end_of_turn)}
    for one in planned:
        read = encoder.process(one)  # raises if the counts differ
        assert len(read.prompt) == one.prompt_tokens
        assert read.positions.shape[1] == one.prompt_tokens
        assert one.length == one.prompt_tokens + len(one.chosen) + len(one.rejected)
        for answer, ids in ((one.pair.chosen, one.chosen), (one.pair.rejected, one.rejected)):
            assert answer in tokenizer.decode(ids)
            assert ends & set(ids.tolist())


def test_counts_differ_between_images_so_that_the_test_above_could_fail(encoder, pairs):
    planned, _ = encoder.plan(pairs, 4096)
    assert len({one.prompt_tokens for one in planned}) > 2


def test_a_known_size_is_enough_to_count_and_the_image_stays_closed(encoder, pairs):
    def never():
        raise AssertionError("opened")

    expected = encoder.plan(pairs, 4096)[0][1].prompt_tokens
    closed = dataclasses.replace(pairs[1], load=never, size_wh=(44, 90))
    assert encoder.plan([closed], 4096)[0][0].prompt_tokens == expected


def test_a_pair_at_the_limit_stays_and_one_token_over_it_is_dropped(encoder, pairs):
    (one,), _ = encoder.plan(pairs[:1], 4096)
    longest = one.prompt_tokens + max(len(one.chosen), len(one.rejected))
    kept, _ = encoder.plan(pairs[:1], longest)
    assert torch.equal(kept[0].chosen, one.chosen)
    assert encoder.plan(pairs[:1], longest - 1) == ([], [("0", "too_long")])


def test_the_longer_of_the_answers_decides(encoder, pairs):
    (one,), _ = encoder.plan(pairs[1:2], 4096)
    assert len(one.rejected) > len(one.chosen)
    limit = one.prompt_tokens + len(one.chosen)
    assert encoder.plan(pairs[1:2], limit)[1] == [("1", "too_long")]
    # For fine-tuning the rejected answer does not count.
    assert encoder.plan(pairs[1:2], limit, with_rejected=False)[1] == []


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        ("", "a dog", "empty_answer"),
        ("a cat", "", "empty_answer"),
        (" \n", "a dog", "empty_answer"),
        ("a dog", "a dog", "answers_equal"),
        ("an <image> of a dog", "a dog", "answer_has_image_token"),
        ("a cat", "<image>", "answer_has_image_token"),
    ],
)
def test_answers_that_teach_nothing_or_break_the_sequence_are_dropped(chosen, rejected, reason, encoder, pairs):
    bad = dataclasses.replace(pairs[0], pair_id="bad", chosen=chosen, rejected=rejected)
    planned, dropped = encoder.plan([bad, pairs[1]], 4096)
    assert dropped == [("bad", reason)]
    assert reason in TRAINING_REASONS
    assert [one.pair.pair_id for one in planned] == ["1"]


def test_fine_tuning_takes_pairs_whose_rejected_answer_is_empty_or_equal(encoder, pairs):
    odd = [dataclasses.replace(pairs[0], rejected=rejected) for rejected in ("", pairs[0].chosen)]
    planned, dropped = encoder.plan(odd, 4096, with_rejected=False)
    assert len(planned) == 2
    assert not dropped


@pytest.mark.parametrize("which", ["load", "digest"])
def test_an_image_that_is_gone_is_dropped_with_the_images_reason(which, encoder, pairs):
    def gone():
        raise ImageProblem("image_missing", "7.png")

    planned, dropped = encoder.plan([dataclasses.replace(pairs[0], **{which: gone}), pairs[1]], 4096)
    assert dropped == [("0", "image_missing")]
    assert len(planned) == 1


def test_an_image_of_another_size_than_was_planned_is_an_error_that_names_the_pair(encoder, pairs, picture):
    (one,), _ = encoder.plan(pairs[:1], 4096)
    changed = dataclasses.replace(one, pair=dataclasses.replace(one.pair, load=lambda: picture(300, 40)))
    with pytest.raises(Exception, match="The prompt of pair 0 has another number of tokens"):
        encoder.process(changed)


def test_a_system_turn_is_part_of_the_prompt(encoder, pairs):
    system = {"role": "system", "content": [{"type": "text", "text": "Be exact."}]}
    told = dataclasses.replace(pairs[0], messages=[system, *pairs[0].messages])
    (plain, one), _ = encoder.plan([pairs[0], told], 4096)
    assert one.turn == "<|im_start|>system\nBe exact.<|im_end|>\n" + plain.turn
    encoder.process(one)


def test_the_images_token_in_a_prompts_text_is_not_another_image(encoder, pairs):
    asked = dataclasses.replace(pairs[0], messages=user_turn("What does <image> mean?"))
    (one,), _ = encoder.plan([asked], 4096)
    assert one.turn.count("<image>") == 1
    encoder.process(one)


def test_a_pairs_key_changes_with_prompt_answers_and_image_and_with_nothing_else(encoder, pairs):
    first = pairs[0]
    others = [
        dataclasses.replace(first, messages=user_turn("Another?")),
        dataclasses.replace(first, chosen="x"),
        dataclasses.replace(first, rejected="x"),
        dataclasses.replace(first, digest=lambda: "another image"),
    ]
    planned, _ = encoder.plan([first, dataclasses.replace(first, pair_id="renamed"), *others], 4096)
    keys = [one.key for one in planned]
    assert keys[0] == keys[1]
    assert len(set(keys[1:])) == 5
    assert plan_digest(planned[:2]) != plan_digest(planned[1:3])


@pytest.mark.parametrize(("limit", "opened"), [(None, 2), ("first", 4), ("none", 6)])
def test_what_the_processor_made_is_kept_with_the_features_where_there_is_room(limit, opened, trainee_of, pairs):
    trainee = trainee_of("llava_onevision", vision_cache="memory")
    encoder, seen = trainee.encoder, []

    def compute(vision):
        with torch.no_grad():
            return Features(*trainee.model(vision=vision))

    def counted(pair):
        return dataclasses.replace(pair, load=lambda: seen.append(pair.pair_id) or pair.load())

    planned, _ = encoder.plan(list(map(counted, pairs[:2])), 4096)
    first = compute(encoder.process(planned[0]).vision)
    encoder.store = MemoryFeatures({None: None, "first": first.nbytes, "none": 0}[limit])
    seen.clear()
    made = [[encoder.finish(one, encoder.process(one), compute) for one in planned] for _ in range(3)]
    assert len(seen) == opened
    for again in made[1:]:
        for one, other in zip(again, made[0], strict=True):
            assert torch.equal(one.features.tokens, other.features.tokens)
            assert torch.equal(one.prompt, other.prompt)
            assert torch.equal(one.positions, other.positions)


def test_the_context_is_what_the_config_says_but_no_more_than_the_model_reads(trainee_of):
    config = trainee_of("llava").model.base.config
    assert context_length(config, None) == 4096
    assert context_length(config, 100) == 100
    assert context_length(config, 10**6) == 4096
