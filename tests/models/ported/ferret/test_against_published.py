"""Logits, region features and generated tokens equal those of the published code (see conftest.py)."""

import numpy as np
import pytest
import torch

from spr.models.ported.ferret.modeling import FerretForConditionalGeneration
from spr.models.ported.ferret.regions import draw_points, region_mask
from spr.models.ported.ferret.sampler import RegionSampler

SIZE = 50, 40
PATCHES = 16  # 56 px, patches of 14
COLUMNS, ROWS = np.meshgrid(np.arange(50), np.arange(40))
BOX = region_mask((5, 8, 25.5, 30), SIZE)
POINT = region_mask((47, 3), SIZE)
DISC = region_mask((COLUMNS - 30) ** 2 + (ROWS - 20) ** 2 < 15**2, SIZE)
TOLERANCE = 1e-5  # differences are about 1e-6


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request, published_folder):
    return FerretForConditionalGeneration.from_pretrained(published_folder, attn_implementation=request.param).eval()


def pixels(tiny, count):
    draw = np.random.default_rng([tiny.seed, 1])
    return torch.from_numpy(draw.standard_normal((count, 3, 56, 56)).astype(np.float32))


def prompt(tiny, length, regions, number):
    """Random tokens, with the image at position 4 and a region token at every third position after it."""
    ids = np.random.default_rng([tiny.seed, number]).integers(3, tiny.region, length)
    ids[0] = 1
    ids[8 : 8 + 3 * regions : 3] = tiny.region
    return [*ids[:4], *[tiny.image] * PATCHES, *ids[5:]]


def drawn(rows, generator, count=512):
    """The points of each image's regions, padded with −1."""
    most = max(map(len, rows))
    points = torch.full((len(rows), most, count, 2), -1, dtype=torch.int32)
    for k, row in enumerate(rows):
        for j, mask in enumerate(row):
            points[k, j] = draw_points(mask, count, generator)
    return points


def inputs(tiny, prompts, rows, seed):
    """A batch, padded on the left; the points are drawn in the published code's order."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(ids)) + ids for ids in prompts])
    attention = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts])
    made = {"input_ids": ids, "attention_mask": attention, "pixel_values": pixels(tiny, len(prompts))}
    made["position_ids"] = (attention.cumsum(-1) - 1).clamp(min=0)
    if any(rows):
        sizes = torch.tensor([SIZE] * len(prompts))
        made |= {"region_points": drawn(rows, generator), "region_sizes": sizes, "region_generator": generator}
    return made


@pytest.mark.parametrize(
    ("name", "length", "number", "rows"),
    [
        ("none", 14, 20, [[]]),
        ("box", 20, 21, [[BOX]]),
        ("several", 24, 22, [[BOX, POINT, DISC]]),
    ],
)
def test_logits_are_those_of_the_published_code(name, length, number, rows, model, tiny, answers):
    seed = {"none": 0, "box": 1, "several": 2}[name]
    batch = inputs(tiny, [prompt(tiny, length, len(rows[0]), number)], rows, seed)
    with torch.no_grad():
        logits = model(**batch).logits
    # The last token of our vocabulary is <image>, which the published one lacks.
    torch.testing.assert_close(logits[..., :-1], torch.from_numpy(answers[name]), atol=TOLERANCE, rtol=0)


def test_a_padded_batch_of_prompts_with_different_regions_gives_the_published_logits(model, tiny, answers):
    prompts = [prompt(tiny, 24, 2, 23), prompt(tiny, 17, 1, 24)]
    with torch.no_grad():
        logits = model(**inputs(tiny, prompts, [[DISC, BOX], [POINT]], 3)).logits[..., :-1]
    expected = torch.from_numpy(answers["batch"])  # padded on the right
    torch.testing.assert_close(logits[0], expected[0], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(logits[1, 7:], expected[1, :-7], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("pooling", ["max", "mean"])
def test_region_features_are_those_of_the_published_code(pooling, tiny, answers):
    sampler = RegionSampler(24, 32, (128, 32), (24, 24), pooling)
    top = "model.region_geo_sampler."
    sampler.load_state_dict({name: tiny.weight(top + name, tuple(p.shape)) for name, p in sampler.named_parameters()})
    maps = torch.from_numpy(np.random.default_rng([tiny.seed, 2]).standard_normal((2, 16, 24)).astype(np.float32))
    generator = torch.Generator().manual_seed(4)
    points = drawn([[BOX, POINT, DISC], [DISC]], generator)
    with torch.no_grad():
        found = sampler(maps, points, torch.tensor([SIZE, SIZE]), generator)
    torch.testing.assert_close(found, torch.from_numpy(answers[f"regions_{pooling}"]), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("cached", [True, False])
def test_greedy_generation_gives_the_published_tokens_with_and_without_the_cache(cached, model, tiny, answers):
    batch = inputs(tiny, [prompt(tiny, 24, 3, 22)], [[BOX, POINT, DISC]], 2)
    del batch["position_ids"]
    points = batch["region_points"].clone()
    state = batch["region_generator"].get_state()

    class Again(torch.nn.Module):
        """Without the cache, every token encodes the image again, and the sampler must restart from the same state."""

        def __call__(self, _, scores):
            batch["region_generator"].set_state(state)
            return scores

    made = model.generate(
        **batch,
        max_new_tokens=12,
        do_sample=False,
        use_cache=cached,
        eos_token_id=None,
        suppress_tokens=[tiny.image],
        output_logits=True,
        return_dict_in_generate=True,
        logits_processor=[Again()],
    )
    assert torch.equal(points, batch["region_points"])
    assert made.sequences[0, -12:].tolist() == answers["generated_ids"].tolist()
    logits = torch.cat(made.logits)[:, :-1]
    torch.testing.assert_close(logits, torch.from_numpy(answers["generated_logits"]), atol=TOLERANCE, rtol=0)
