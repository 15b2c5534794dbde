from types import SimpleNamespace

import numpy as np
import pytest
import torch

from spr.embedded.scenes import SIZE
from tools.embedded.conversations import IGNORED, Conversations, Turn, conversation_maker, jittered, make_turn, pack
from tools.embedded.corpus import Corpus, build_corpus
from tools.embedded.dense import Objects
from tools.embedded.models import IMAGE_TOKENS, make_describer
from tools.embedded.texts import description
from tools.embedded.train_describer import answer_loss, answer_states, pointing_loss, shared_prefix_mask
from tools.embedded.train_vision import tower_features
from tools.embedded.views import ImageBank
from tools.embedded.vocabulary import FIRST_COORDINATE, IDS, IMAGE, TOKENS, USER


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return build_corpus(tmp_path_factory.mktemp("corpus"), n=12, seed=1)


def batch_of(corpus: Corpus, step: int) -> Conversations:
    return conversation_maker(corpus, seed=0, batch_size=3, steps=10, jitter=0.0)(step)


def text(ids: np.ndarray) -> str:
    return " ".join(TOKENS[i] for i in ids)


def test_a_batch_depends_on_its_step_only(corpus: Corpus) -> None:
    one, two, other = batch_of(corpus, 5), batch_of(corpus, 5), batch_of(corpus, 6)
    assert np.array_equal(one.ids, two.ids)
    assert not np.array_equal(one.views.rows, other.views.rows)


def test_training_starts_with_expressions_only(corpus: Corpus) -> None:
    first = batch_of(corpus, 0)
    for row, turns in zip(first.ids, first.turns, strict=True):
        for turn in range(1, turns.max() + 1):
            assert text(row[turns == turn]).startswith("where is the ")


def test_the_answer_to_an_expression_is_the_box_of_its_object(corpus: Corpus) -> None:
    first = batch_of(corpus, 0)
    view = first.views.rows[0]
    target = corpus.targets[view, 0]
    said = first.labels[0][(first.turns[0] == 1) & (first.labels[0] != IGNORED)]
    numbers = [(i - FIRST_COORDINATE) / 100 for i in said if i >= FIRST_COORDINATE]
    assert numbers == pytest.approx(corpus.boxes[view, target] / SIZE, abs=0.0051)  # two decimals
    assert TOKENS[said[-1]] == "<|end|>"


def test_the_answer_to_a_list_names_its_objects_in_its_order(corpus: Corpus) -> None:
    for step in range(2, 30):
        batch = batch_of(corpus, step)
        turn = text(batch.ids[0][batch.turns[0] == 2])
        if "objects : 1 " in turn:
            break
    asked, answer = turn.split("<|assistant|>")
    numbered = [part.split(" [")[0].split(" ", 1)[1] for part in asked.split("objects : ")[1].split(" ]; ")]
    named = [part.split(" [")[0] for part in answer.replace(" and ", " ], ").split(" ], ")]
    assert [name.strip().removeprefix("an ").removeprefix("a ") for name in named] == numbered


def test_jitter_moves_edges_by_a_share_of_the_side_and_no_jitter_keeps_them() -> None:
    boxes = np.tile([[0.2, 0.2, 0.6, 0.4]], (4000, 1))
    rng = np.random.default_rng(0)
    assert np.array_equal(jittered(boxes, rng, 0.0), boxes)
    errors = jittered(boxes, rng, 0.05) - boxes
    # 0.05 of the sides 0.4 and 0.2; no bias.
    assert errors.std(axis=0) == pytest.approx([0.02, 0.01, 0.02, 0.01], rel=0.05)
    assert np.abs(errors.mean(axis=0)).max() < 0.001


def test_turns_attend_to_the_prefix_and_themselves_only() -> None:
    # Prefix of 2, then turn 1 of two tokens and turn 2 of one.
    mask, positions = shared_prefix_mask(torch.tensor([[1, 1, 2]]), torch.tensor([[0, 1, 0]]), prefix=2)
    seen = (mask[0, 0] == 0).int().tolist()
    assert seen == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 1]]
    assert positions.tolist() == [[0, 1, 2, 3, 2]]


@torch.no_grad()
def test_a_shared_prefix_gives_the_same_output_as_each_turn_alone(corpus: Corpus) -> None:
    torch.manual_seed(0)
    model, bank = make_describer().eval(), ImageBank(corpus.images, torch.device("cpu"))
    for step in (0, 4, 5, 7):
        batch = batch_of(corpus, step)
        pixels = bank.views(batch.views.rows, batch.views.windows)
        image = model.model.multi_modal_projector(tower_features(model.model.vision_tower, pixels))
        logits = model.lm_head(answer_states(model, image, batch, torch.float32)[0])
        for row in range(len(pixels)):
            for turn in range(1, batch.turns[row].max() + 1):
                mine = batch.turns[row] == turn
                ids = torch.tensor([[IDS[USER], *[IDS[IMAGE]] * IMAGE_TOKENS, *batch.ids[row][mine]]])
                alone = model(ids, pixel_values=pixels[row : row + 1], image_sizes=torch.tensor([[SIZE, SIZE]]))
                torch.testing.assert_close(
                    logits[row][torch.from_numpy(mine)][1:],
                    alone.logits[0, IMAGE_TOKENS + 1 : -1],
                    atol=1e-4,
                    rtol=1e-4,
                )


def test_packed_turns_follow_each_other() -> None:
    samples = [[Turn([5], [6, 7], [0, -1])], [Turn([8, 9], [10], [4])]]
    ids, turns, positions, labels, about = pack(samples, multiple=4)
    assert ids.tolist() == [[5, 6, 7, 0], [8, 9, 10, 0]]
    assert turns.tolist() == [[1, 1, 1, 0]] * 2
    assert positions.tolist() == [[0, 1, 2, 0]] * 2
    assert labels.tolist() == [[-100, 6, 7, -100], [-100, -100, 10, -100]]
    assert about.tolist() == [[-1, 0, -1, -1], [-1, -1, 4, -1]]


def test_each_token_of_an_answer_is_about_the_object_whose_box_comes_next() -> None:
    # a red ring [ 4 numbers ] | and a blue star [ 4 numbers ]. | end
    turn = make_turn("?", description(["red ring", "blue star"], [[0, 0, 0.5, 0.5]] * 2), [7, 3])
    assert turn.about == [7] * 9 + [3] * 10 + [-1]


def test_pointing_at_the_right_patches_costs_nothing() -> None:
    # One view of 4 patches; the object covers the left half, patches 0 and 2, and the second label is about it.
    objects = Objects(torch.tensor([[5]]), torch.tensor([[[0.0, 0.0, 0.5, 1.0]]]))
    batch = SimpleNamespace(about=np.array([[-1, 0]]))
    right = torch.tensor([0.5, 0.0, 0.5, 0.0]).log().expand(1, 2, 2, 4)
    loss, hit = pointing_loss(right, batch, objects)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert hit.item() == 1
    even = torch.full((1, 2, 2, 4), 0.25).log()
    assert pointing_loss(even, batch, objects)[0].item() == pytest.approx(np.log(2))


@torch.no_grad()
def test_the_loss_of_a_word_is_its_log_probability_and_that_of_a_coordinate_is_shared_by_neighbours() -> None:
    model = make_describer()
    model.lm_head.weight.zero_()  # every token is equally likely: ln 207 for any target
    states = torch.zeros(1, 2, model.config.text_config.hidden_size)
    loss, figures = answer_loss(model, states, torch.tensor([[IDS["red"], FIRST_COORDINATE + 50]]))
    assert loss.item() == pytest.approx(np.log(len(TOKENS)), abs=1e-5)
    assert figures["names_right"].item() == 0
