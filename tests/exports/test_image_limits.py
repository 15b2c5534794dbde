"""Boxes in pixels of the resized image: each trainer, with the settings of the export, shows the model that image.

The rules by which trainers resize are written down here again: LLaMA-Factory 0.9.5 `data/mm_plugin.py`, ms-swift 4.6.0
`model/models/qwen.py` with qwen-vl-utils 0.0.11 and 0.0.14; TRL, VLM-R1 and Visual-RFT leave it to the processor of
transformers. verl 0.9.0 uses qwen-vl-utils and then the processor; EasyR1 resizes as its config says (`process_image`
of `verl/utils/dataset.py`), and then the processor.
"""

import json
import math
import re

import pytest
import yaml
from PIL import Image
from transformers import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from spr.exports import grpo_easyr1, grpo_verl, llamafactory, ms_swift
from spr.exports.image_limits import geometry_note, pixel_limits
from spr.exports.writing import export
from spr.grounding import DIALECTS, get_dialect, parse
from spr.grounding.geometry import Resized

PUBLISHED = {"min_pixels": 3136, "max_pixels": 12845056}  # preprocessor_config.json of Qwen2.5-VL
SIZES = [
    (1632, 1224),
    (1280, 854),
    (640, 427),
    (427, 640),
    (4000, 3000),
    (6000, 4000),
    (3001, 1999),
    (90, 60),
    (30, 29),
]
LIMITED = "qwen2_5_vl:min_pixels=100000,max_pixels=1003600"


def processors_size(size_wh, limits):
    return smart_resize(size_wh[1], size_wh[0], factor=28, **limits)[::-1]


def llamafactorys_size(size_wh, settings, processor):
    """`_preprocess_image` of `BasePlugin` and `Qwen2VLPlugin`, then the model's own processor."""
    w, h = size_wh
    for limit, out in (("image_max_pixels", w * h > settings["image_max_pixels"]), ("image_min_pixels", None)):
        if out or (out is None and w * h < settings[limit]):
            factor = math.sqrt(settings[limit] / (w * h))
            w, h = int(w * factor), int(h * factor)
    if min(w, h) < 28:
        w, h = max(w, 28), max(h, 28)
    return processors_size((w, h), processor)


def swifts_size(size_wh, environment, *, newer):
    """`fetch_image` of qwen-vl-utils, after which the processor is called with ``do_resize=False``."""
    if newer:
        tokens = {name: environment[f"IMAGE_{name}_TOKEN_NUM"] for name in ("MIN", "MAX")}
        limits = {"min_pixels": tokens["MIN"] * 28**2, "max_pixels": tokens["MAX"] * 28**2}
    else:
        limits = {"min_pixels": environment["MIN_PIXELS"], "max_pixels": environment["MAX_PIXELS"]}
    w, h = (max(28, round(side / 28) * 28) for side in size_wh)
    if w * h > limits["max_pixels"]:
        beta = math.sqrt(size_wh[0] * size_wh[1] / limits["max_pixels"])
        w, h = (math.floor(side / beta / 28) * 28 for side in size_wh)
    elif w * h < limits["min_pixels"]:
        beta = math.sqrt(limits["min_pixels"] / (size_wh[0] * size_wh[1]))
        w, h = (math.ceil(side * beta / 28) * 28 for side in size_wh)
    return w, h


@pytest.mark.parametrize("spec", ["qwen2_5_vl", LIMITED, "qwen2_5_vl:max_pixels=1003520"])
def test_each_trainer_shows_the_image_in_which_the_boxes_count(spec):
    dialect = get_dialect(spec)
    limits = pixel_limits(dialect)
    lf = yaml.safe_load(llamafactory.settings(dialect))
    environment = yaml.safe_load(ms_swift.settings(dialect))["ENV"]
    for size in SIZES:
        seen = dialect.geometry.canvas(size)[-2:]
        assert processors_size(size, limits) == seen
        assert llamafactorys_size(size, lf, limits) == seen
        assert lf["cutoff_len"] - seen[0] * seen[1] // 28**2 >= 4096  # infer_seqlen cuts a longer prompt in its image
        assert swifts_size(size, environment, newer=False) == seen
        assert swifts_size(size, environment, newer=True) == seen
    # What LLaMA-Factory shows without these settings: a photo of 1280 × 854 at 952 × 616 instead of 1288 × 840.
    defaults = {"image_max_pixels": 768 * 768, "image_min_pixels": 32 * 32}
    assert llamafactorys_size((1280, 854), defaults, PUBLISHED) == (952, 616)
    assert processors_size((1280, 854), PUBLISHED) == (1288, 840)


@pytest.mark.parametrize("spec", ["qwen2_5_vl", LIMITED])
def test_trainers_that_resize_twice_show_the_same_image(spec):
    dialect = get_dialect(spec)
    script, data = grpo_verl.script(dialect, held_out=False), yaml.safe_load(grpo_easyr1.settings(dialect))["data"]
    environment = {name: int(value) for name, value in re.findall(r"export (\w+)=(\d+)", script)}
    least, most = map(int, re.search(r"size=\{shortest_edge:(\d+),longest_edge:(\d+)\}", script).groups())
    assert (data["min_pixels"], data["max_pixels"]) == (None, None)  # EasyR1 leaves the image as it is
    limits = {"min_pixels": least, "max_pixels": most}
    for size in SIZES:
        seen = dialect.geometry.canvas(size)[-2:]
        for newer in (False, True):
            assert processors_size(swifts_size(size, environment, newer=newer), limits) == seen
    # What verl passes to the processor has the effect of these limits.
    areas = {"shortest_edge": least, "longest_edge": most}
    for size in ((1632, 1224), (90, 60)):
        (grid,) = Qwen2VLImageProcessorPil()(Image.new("RGB", size), size=areas)["image_grid_thw"].tolist()
        assert (grid[2] * 14, grid[1] * 14) == dialect.geometry.canvas(size)[-2:]


def test_the_boxes_of_a_2_megapixel_photo_are_where_the_trainers_show_their_objects(
    make_dataset, make_run, pairs_of, tmp_path
):
    data = make_dataset(tmp_path / "data", images=1)
    size = (1632, 1224)
    Image.new("RGB", size, "teal").save(data.images / "1000.png")
    data.coco["images"][0].update(width=size[0], height=size[1])
    for entry in data.coco["annotations"]:
        entry["bbox"] = [value * 7 for value in entry["bbox"]]
    run = make_run(data)
    (pair,) = pairs_of(run)
    exact = [box for span in pair.chosen_spans for box in span.boxes]
    assert exact
    for key in ("llamafactory", "ms-swift", "trl"):
        export(run, tmp_path / key, key, dialect="qwen2_5_vl")
    folder = tmp_path / "llamafactory"
    (row,) = map(json.loads, (folder / "train.jsonl").read_text().splitlines())
    written = [item["bbox_2d"] for item in json.loads(row["chosen"]["value"])]
    limits = json.loads((tmp_path / "trl" / "processor.json").read_text())
    _, down, across = Qwen2VLImageProcessorPil(**limits)(Image.new("RGB", size))["image_grid_thw"][0]
    shown = [
        (int(across) * 14, int(down) * 14),
        llamafactorys_size(size, yaml.safe_load((folder / "train_dpo.yaml").read_text()), PUBLISHED),
        swifts_size(size, yaml.safe_load((tmp_path / "ms-swift" / "train_dpo.yaml").read_text())["ENV"], newer=True),
    ]
    for width, height in shown:
        scale = (width / size[0], height / size[1]) * 2
        for box, numbers in zip(exact, written, strict=True):
            assert numbers == pytest.approx([v * s for v, s in zip(box, scale, strict=True)], abs=0.51)
    for key in ("llamafactory", "ms-swift", "trl"):
        card = (tmp_path / key / "README.md").read_text()
        assert "`min_pixels: 3136` and `max_pixels: 12845056`" in card
        assert f"{key}/{'processor.json' if key == 'trl' else 'train_dpo.yaml'}" in card


def test_relative_numbers_need_no_limits():
    """LLaMA-Factory's own resizing moves a box of them by less than the rounding of its sides to whole pixels."""
    for key, dialect in DIALECTS.items():
        if isinstance(dialect.geometry, Resized):
            continue
        assert pixel_limits(dialect) == {}
        assert "image_max_pixels" not in yaml.safe_load(llamafactory.settings(dialect))
        assert yaml.safe_load(ms_swift.settings(dialect))["ENV"] == {}
        assert ("must pad" in geometry_note(dialect)) == (key in ("llava", "shikra"))
    assert "must pad" in geometry_note(get_dialect("llava_onevision:padded=true"))
    box, size = (400.0, 300.0, 1200.0, 900.0), (1632, 1224)
    shown = [int(side * math.sqrt(768 * 768 / (size[0] * size[1]))) for side in size]
    for key in ("qwen2_vl", "qwen3_vl", "internvl", "llava_onevision", "ferret"):
        dialect = get_dialect(key)
        number = dialect.frame(size).encode(box)
        again, _ = dialect.frame(tuple(shown)).decode(number)
        moved = [abs(a * b / c - d) for a, b, c, d in zip(again, size * 2, shown * 2, box, strict=True)]
        assert max(moved) <= max(dialect.max_error(size)) + 1.0


def test_limits_are_those_of_the_dialect_that_the_answers_were_made_in(make_dataset, make_run, tmp_path):
    describer = {"backend": "fake", "dialect": LIMITED}
    run = make_run(make_dataset(tmp_path / "data", images=1), describer=describer)
    export(run, tmp_path / "out", "llamafactory")
    text = (tmp_path / "out" / "train_dpo.yaml").read_text()
    settings = yaml.safe_load(text)
    assert (settings["image_max_pixels"], settings["image_min_pixels"]) == (178_956_970, 1)
    assert "#   min_pixels: 100000\n#   max_pixels: 1003600\n" in text
    row = json.loads((tmp_path / "out" / "train.jsonl").read_text().splitlines()[0])
    assert parse(row["chosen"]["value"], LIMITED, (200, 160)).boxes
