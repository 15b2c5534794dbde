"""Which reading numbers fit, on real annotations and on made ones whose reading is known."""

import dataclasses
import json

import numpy as np
import pytest

from spr.grounding import DIALECTS, get_dialect
from spr.grounding.coding import Numbers
from spr.grounding.geometry import Relative, Resized
from spr.workflows.checking.counts import Side, Slope
from spr.workflows.checking.evidence import Evidence, chosen_candidate, sort_corners
from spr.workflows.checking.readings import ORDERS, ImageSizes, Reading, known_readings, known_scales
from spr.workflows.checking.rows import Batch, DataRow
from spr.workflows.checking.verdicts import tolerated

READINGS = {reading.name: reading for reading in known_readings()}
RESIZED = "xyxy, pixels after resizing (multiples of 28, 3,136 to 12,845,056 pixels)"
SMALLER = "xyxy, pixels after resizing (multiples of 28, 3,136 to 200,704 pixels)"
PIXELS, THOUSAND = READINGS["xyxy, pixels"], READINGS["xyxy, 0–1000"]


def encode(reading, boxes, sizes):
    """Numbers as they are written: whole, or with the decimals of 0–1 and 0–100."""
    x, x0, y, y0 = reading.scale.factors(ImageSizes(sizes.astype(float)))
    x1, y1, x2, y2 = boxes.T / np.concatenate([sizes, sizes], axis=1).T
    x1, x2, y1, y2 = (x1 - x0) / x, (x2 - x0) / x, (y1 - y0) / y, (y2 - y0) / y
    columns = {
        "xyxy": (x1, y1, x2, y2),
        "yxyx": (y1, x1, y2, x2),
        "xywh": (x1, y1, x2 - x1, y2 - y1),
        "cxcywh": ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1),
    }
    units = reading.scale.coding.units
    numbers = np.stack(columns[reading.order], axis=1).round({1: 3, 100: 1}.get(units, 0))
    return np.clip(numbers, 0, 31) if reading.scale.is_grid else numbers


def batch(numbers, sizes, start=0):
    rows = [
        DataRow(k, f"d.jsonl, line {k}", "a.jpg", None if size is None else tuple(size), "", "", (tuple(box),), ("",))
        for k, (box, size) in enumerate(zip(numbers.tolist(), sizes, strict=True), start=start + 1)
    ]
    return Batch(rows)


def judge(numbers, sizes, given=None, **options):
    evidence = Evidence(given, **options)
    evidence.add(batch(numbers, sizes.tolist() if isinstance(sizes, np.ndarray) else sizes))
    return evidence.candidates()


def of(candidates, reading):
    return next(one for one in candidates if one.reading == reading)


def fitting(candidates):
    return {one.reading.name for one in candidates if one.verdict == "fits"}


def made(n, sizes, *, side=0.16, seed=0, clipped=True):
    """Boxes of objects anywhere in images of these sizes, cut off at the border, or all inside a margin."""
    rng = np.random.default_rng(seed)
    size = np.array(sizes, dtype=float)[rng.integers(len(sizes), size=n)]
    lengths, shapes = rng.lognormal(np.log(side), 0.7, (n, 1)), np.exp(rng.normal(0, 0.5, (n, 1)))
    wh = np.clip(np.hstack([lengths * shapes, lengths / shapes]) * np.sqrt(size.prod(1, keepdims=True)), 2, 0.95 * size)
    centre = rng.uniform(0, 1, (n, 2)) * size
    if not clipped:
        wh = np.minimum(wh, 0.5 * size)
        centre = wh / 2 + 0.07 * size + rng.uniform(0, 1, (n, 2)) * (0.86 * size - wh)
    boxes = np.hstack([np.maximum(centre - wh / 2, 0), np.minimum(centre + wh / 2, size)])
    return boxes, size.astype(int)


@pytest.fixture(scope="module")
def coco(photos):
    found = json.loads((photos / "instances.json").read_text())
    images = {image["id"]: (image["width"], image["height"]) for image in found["images"]}
    boxes = np.array([one["bbox"] for one in found["annotations"]])
    boxes[:, 2:] += boxes[:, :2]
    return boxes, np.array([images[one["image_id"]] for one in found["annotations"]])


@pytest.mark.parametrize("name", READINGS)
def test_real_boxes_fit_the_reading_they_are_written_in_and_no_other(coco, name):
    reading, (boxes, sizes) = READINGS[name], coco
    candidates = judge(encode(reading, boxes, sizes), sizes)
    own = of(candidates, reading)
    assert own.verdict == "fits"
    same = {name, *own.same_as}
    alike = {"xyxy": "yxyx", "yxyx": "xyxy"}.get(reading.order) if reading.scale.is_grid else None
    allowed = same | {f"{alike}, {reading.scale.name}"}  # 32 cells are too coarse for 80 images
    assert fitting(candidates) <= allowed
    assert candidates[0].reading.name in allowed


@pytest.mark.parametrize("name", READINGS)
def test_the_right_reading_fits_made_boxes_also_if_some_are_wrong(name):
    # Most images are larger than 1,003,520 pixels, so that the limit shows.
    boxes, sizes = made(1000, [(630, 470), (1200, 1590), (1430, 1910), (1910, 1070), (2040, 1530)])
    reading = READINGS[name]
    numbers = encode(reading, boxes, sizes)
    rng = np.random.default_rng(1)
    wrong = rng.random(len(numbers)) < 0.005
    numbers[wrong] = rng.uniform(-500, 5000, (wrong.sum(), 4))
    candidates = judge(numbers, sizes)
    own = of(candidates, reading)
    assert own.verdict == "fits"
    assert fitting(candidates) <= {name, *own.same_as} or reading.scale.is_grid


def pair_verdict(written, read, boxes, sizes):
    """The verdict about a reading of numbers that are written in another one."""
    return of(judge(encode(READINGS[written], boxes, sizes), sizes), READINGS[read]).verdict


@pytest.mark.parametrize(
    ("written", "read", "verdict"),
    [
        ("xyxy, 0–1000", "xyxy, pixels", "refuted"),  # beyond images of 640 pixels
        ("xyxy, pixels", "xyxy, 0–1000", "refuted"),  # no box ends at the border, all end within 64 %
        ("xyxy, 0–1", "xyxy, 0–1000", "refuted"),
        ("xyxy, 0–1", "xyxy, pixels", "refuted"),
        ("xyxy, 0–1000", "xyxy, 0–1", "refuted"),
        ("xyxy, 0–1", "xyxy, 0–1 of the padded square", "refuted"),  # boxes in the padding
        ("xyxy, 0–1 of the padded square", "xyxy, 0–1", "refuted"),  # short sides are not used, and shapes follow
        ("xywh, pixels", "xyxy, pixels", "refuted"),
        ("xyxy, pixels", "xywh, pixels", "refuted"),
        ("cxcywh, pixels", "xywh, pixels", "refuted"),
        ("xywh, pixels", "cxcywh, pixels", "refuted"),
        ("yxyx, 0–1000", "xyxy, 0–1000", "less likely"),  # only the shapes of boxes tell
        ("xyxy, 0–1023", "xyxy, 0–1000", "refuted"),
        ("xyxy, 0–1000", "xyxy, 0–1023", "less likely"),
        ("xyxy, 0–1000", "xyxy, 0–999", "less likely"),  # a thousandth apart, but 1000 is there
        ("xyxy, 0–999", "xyxy, 0–1000", "fits"),
        ("xyxy, pixels", RESIZED, "refuted"),  # 640 × 427 for 644 × 420: numbers up to 427, and none at the border
        (RESIZED, "xyxy, pixels", "refuted"),
        (SMALLER, RESIZED, "less likely"),  # 532 × 364 for 644 × 420: none at the border
        (RESIZED, SMALLER, "refuted"),  # beyond the resized image
        ("xyxy, 0–100", "xyxy, 0–1000", "refuted"),
        ("xyxy, 0–1000", "xyxy, 0–100", "refuted"),
    ],
)
def test_which_pairs_of_readings_real_boxes_tell_apart(coco, written, read, verdict):
    assert pair_verdict(written, read, *coco) == verdict


def test_careless_boxes_that_leave_their_image_by_some_pixels_do_not_refute(coco):
    boxes, sizes = coco
    careless = boxes + np.random.default_rng(0).uniform(-3, 3, boxes.shape)
    candidates = judge(careless.round(), sizes)
    assert of(candidates, PIXELS).verdict == "fits"
    assert candidates[0].reading == PIXELS
    assert of(candidates, PIXELS).in_range < 0.99


def test_in_images_of_1000_pixels_pixels_and_thousandths_are_the_same():
    boxes, sizes = made(500, [(1000, 1000)])
    candidates = judge(boxes.round(), sizes)
    assert {"xyxy, pixels", "xyxy, 0–1000"} <= fitting(candidates)
    assert {"xyxy, 0–1000", "xyxy, 0–999"} <= set(of(candidates, PIXELS).same_as)
    assert "yxyx, pixels" in fitting(candidates)  # squares don't show which is x
    assert "yxyx, pixels" not in of(candidates, PIXELS).same_as


def test_images_of_one_shape_leave_the_order_of_x_and_y_open_and_say_so():
    boxes, sizes = made(500, [(640, 480)])
    candidates = judge(encode(THOUSAND, boxes, sizes), sizes)
    assert {"xyxy, 0–1000", "yxyx, 0–1000"} <= fitting(candidates)
    assert of(candidates, THOUSAND).aspect is None
    assert chosen_candidate(candidates, None).reading.scale.name == "0–1000"


@pytest.mark.parametrize("name", ["xyxy, pixels", "xywh, pixels", "xyxy, 0–1000", "xyxy, 0–1", "yxyx, 0–1023"])
def test_the_right_reading_fits_where_no_object_is_cut_off(name):
    boxes, sizes = made(1000, [(640, 480), (480, 640), (1280, 720)], clipped=False)
    assert of(judge(encode(READINGS[name], boxes, sizes), sizes), READINGS[name]).verdict == "fits"


@pytest.mark.parametrize("name", READINGS)
@pytest.mark.parametrize("sizes", [[(10_000, 20), (5, 3000)], [(1, 1)], [(7680, 4320)]])
def test_extreme_images_refute_no_right_reading(name, sizes):
    boxes, sizes = made(150, sizes)
    assert of(judge(encode(READINGS[name], boxes, sizes), sizes), READINGS[name]).verdict != "refuted"


def test_three_rows_refute_what_can_not_be_and_leave_the_rest_open():
    sizes = np.array([(640, 480)] * 3)
    candidates = judge(np.array([(100, 100, 200, 300), (20, 50, 639, 470), (300, 10, 400, 100)]), sizes)
    assert {"xyxy, pixels", "xyxy, 0–1000", "yxyx, 0–1000"} <= fitting(candidates)
    assert of(candidates, READINGS["xyxy, 0–1"]).refuted
    assert of(candidates, READINGS["xywh, pixels"]).refuted
    assert of(candidates, READINGS["yxyx, pixels"]).first == (
        "d.jsonl, line 2: [20, 50, 639, 470] in an image of 640 × 480 pixels"
    )


def test_a_refuted_reading_names_the_first_row_and_the_counts():
    sizes = np.array([(640, 480)] * 40)
    numbers = np.tile([10.0, 10, 300, 300], (40, 1))
    numbers[[7, 20, 30]] = (10, 10, 700, 300)
    pixels = of(judge(numbers, sizes, PIXELS), PIXELS)
    assert pixels.verdict == "refuted"
    assert pixels.first == "d.jsonl, line 8: [10, 10, 700, 300] in an image of 640 × 480 pixels"
    assert pixels.reasons == (
        "3 of 40 boxes (7.5 %) reach beyond their image by more than 1 % of the side and 1 pixel",
    )
    assert (pixels.boxes, pixels.beyond, pixels.inverted) == (40, 0.075, 0)
    assert pixels.in_range == 1 - 3 / 160


def test_a_few_wrong_boxes_are_tolerated():
    assert (tolerated(3), tolerated(9), tolerated(10), tolerated(49), tolerated(200)) == (0, 0, 1, 1, 4)
    sizes = np.array([(640, 480)] * 40)
    numbers = np.tile([10.0, 10, 300, 300], (40, 1))
    numbers[5] = (300, 10, 10, 300)
    one = of(judge(numbers, sizes, PIXELS), PIXELS)
    assert (one.verdict, one.inverted) == ("fits", 1 / 40)
    assert one.first.startswith("d.jsonl, line 6:")
    numbers[6] = numbers[5]
    assert of(judge(numbers, sizes, PIXELS), PIXELS).refuted


def test_a_reference_decides_and_refutes(coco):
    boxes, sizes = coco
    evidence = Evidence(THOUSAND)
    numbers = encode(READINGS["yxyx, 0–1000"], boxes, sizes)
    evidence.add(batch(numbers, sizes.tolist()), [np.array([box]) for box in boxes])
    candidates = evidence.candidates()
    assert candidates[0].reading == READINGS["yxyx, 0–1000"]
    assert candidates[0].iou > 0.95
    given = of(candidates, THOUSAND)
    assert given.refuted
    assert any(reason.startswith(f"Mean IoU with the reference {given.iou:.2f}") for reason in given.reasons)


def test_the_reference_is_the_best_box_of_the_row_and_may_be_missing():
    evidence = Evidence(PIXELS)
    numbers = np.array([(10.0, 10, 20, 20), (0, 0, 10, 10), (5, 5, 9, 9)])
    sizes = [(100, 100)] * 3
    reference = [[(50, 50, 60, 60), (10, 10, 20, 15)], [], [(5, 5, 9, 9)]]
    evidence.add(batch(numbers, sizes), reference)
    assert of(evidence.candidates(), PIXELS).iou == pytest.approx((0.5 + 1) / 2)
    assert all(one.iou is None for one in judge(numbers, sizes))


def test_without_sizes_only_scales_that_need_none_are_judged():
    numbers = np.array([(100.0, 100, 900, 900)] * 20)
    candidates = judge(numbers, [None] * 20)
    assert of(candidates, PIXELS).verdict == "no sizes"
    assert of(candidates, THOUSAND).verdict == "fits"
    assert of(candidates, READINGS["xyxy, 0–1"]).refuted
    assert candidates[-1].verdict == "no sizes"
    evidence = Evidence()
    evidence.add(batch(numbers, [None] * 19 + [(1000, 1000)]))
    assert (evidence.boxes, evidence.without_size) == (20, 19)
    assert of(evidence.candidates(), PIXELS).boxes == 1


def test_decimals_speak_against_scales_of_whole_numbers():
    boxes, sizes = made(300, [(500, 400), (400, 500)], clipped=False)
    evidence = Evidence()
    evidence.add(batch(boxes + 0.25, sizes.tolist()))
    assert evidence.with_decimals == 1
    reasons = of(evidence.candidates(), READINGS["xywh, 0–1000"]).reasons + of(evidence.candidates(), THOUSAND).reasons
    assert any("have decimals" in reason for reason in reasons)
    assert of(evidence.candidates(), PIXELS).verdict == "fits"


def test_batches_add_up(coco):
    boxes, sizes = coco
    numbers = encode(THOUSAND, boxes, sizes)
    parts = Evidence()
    for start in range(0, len(numbers), 100):
        parts.add(batch(numbers[start : start + 100], sizes[start : start + 100].tolist(), start))
    parts.add(Batch([]))
    assert [one.to_json() for one in parts.candidates()] == [one.to_json() for one in judge(numbers, sizes)]


def test_no_boxes_and_numbers_of_any_size_raise_nothing():
    assert {one.verdict for one in Evidence().candidates()} == {"no sizes"}
    huge = np.array([(1e308, -1e308, 1e308, 1e308), (0, 0, 0, 0)])
    for one in judge(huge, [(640, 480), (1, 1)]):
        json.dumps(one.to_json(), allow_nan=False)


def test_the_given_reading_comes_first_among_equals_and_is_added_if_it_is_new():
    other = Reading.of_dialect("qwen2_5_vl:max_pixels=150528")
    evidence = Evidence(other)
    assert evidence.readings[0] == other
    assert len(evidence.readings) == len(READINGS) + 4
    numbers, sizes = np.array([(5.0, 5, 9, 9)] * 3), np.array([(640, 480)] * 3)
    for given in (THOUSAND, READINGS["cxcywh, 0–1023"]):
        candidates = judge(numbers, sizes, given)
        assert candidates[0].reading == given
        assert chosen_candidate(candidates, given) == candidates[0]
    assert len(Evidence(THOUSAND).readings) == len(READINGS)


def test_the_trainers_resize_settings_are_told_from_the_usual_ones():
    setting = Resized(min_pixels=3136, max_pixels=150_528)
    boxes, sizes = made(800, [(1920, 1080), (1080, 1920), (1600, 1200)])
    evidence = Evidence(resizes=[setting])
    right = next(one for one in evidence.readings if one.scale.geometry == setting and one.order == "xyxy")
    evidence.add(batch(encode(right, boxes, sizes), sizes.tolist()))
    candidates = evidence.candidates()
    assert fitting(candidates) == {right.name}
    assert of(candidates, READINGS["xyxy, pixels"]).refuted


@pytest.mark.parametrize("key", [key for key in DIALECTS if not key.startswith("molmo")])
def test_readings_decode_as_the_dialects_do(key):
    reading, dialect = Reading.of_dialect(key), get_dialect(key)
    for size in [(640, 480), (333, 1000), (57, 10)]:
        frame = dialect.frame(size)
        box = tuple(edge * side for edge, side in zip((0.1, 0.2, 0.7, 0.9), size * 2, strict=True))
        numbers = frame.encode(box)
        expected, _ = frame.decode(numbers)
        if key == "kosmos2":  # two cells, each as column and row
            numbers = [part for cell in numbers for part in (cell % 32, cell // 32)]
        if reading.order == "yxyx":
            numbers = [numbers[k] for k in (1, 0, 3, 2)]
        np.testing.assert_allclose(reading.decode([numbers], [size])[0], expected, atol=1e-9)


def test_readings_of_dialects_and_of_fields_have_the_order_of_the_text():
    assert {Reading.of_dialect(key).order for key in ("paligemma", "gemini")} == {"yxyx"}
    assert {Reading.of_dialect(key).order for key in ("ferret", "florence2", "qwen_vl", "internvl")} == {"xyxy"}
    assert Reading.of_stated("xywh_pixels").name == "xywh, pixels"
    assert Reading.of_stated("xyxy_norm1").scale.geometry == Relative()
    with pytest.raises(ValueError, match="molmo writes no boxes"):
        Reading.of_dialect("molmo")


def test_orders_place_the_same_box():
    written = {"xyxy": (10, 20, 50, 80), "yxyx": (20, 10, 80, 50), "xywh": (10, 20, 40, 60), "cxcywh": (30, 50, 40, 60)}
    for order in ORDERS:
        assert READINGS[f"{order}, pixels"].decode([written[order]], [(100, 100)]) == pytest.approx(
            np.array([[10, 20, 50, 80]])
        )
    assert np.isnan(PIXELS.decode([(1, 2, 3, 4)], [(np.nan, np.nan)])).all()
    assert sort_corners(np.array([[9.0, 1, 3, 5]])).tolist() == [[3, 1, 9, 5]]


def test_scales_come_from_the_registry():
    names = {scale.name: scale for scale in known_scales()}
    assert names["0–1000"].dialects[:2] == ("ferret", "cogvlm")
    assert names["0–1023"].dialects == ("paligemma",)
    assert names["0–1 of the padded square"].dialects == ("llava", "shikra")
    assert names["cells of a grid of 32 × 32"].dialects == ("kosmos2",)
    mine = dataclasses.replace(get_dialect("ferret"), key="mine", coding=Numbers(units=4096))
    DIALECTS.register("mine", mine)
    try:
        assert "0–4096" in {scale.name for scale in known_scales()}
    finally:
        DIALECTS.unregister("mine")


def test_sides_count_the_edges_that_pile_up_at_the_border():
    side = Side()
    far = np.concatenate([np.full(50, 1.0), np.linspace(0.05, 0.95, 950)])
    side.add(np.linspace(0.02, 0.9, 1000), far, np.full(1000, 0.002))
    assert side.piled() == (50, 0)
    assert side.reach() == 1
    assert side.reach(0.5) == pytest.approx(0.525, abs=0.01)
    even = Side()
    even.add(np.linspace(0, 1, 10_000), np.linspace(0, 1.1, 10_000), np.full(10_000, 0.002))
    assert even.piled()[0] < 5
    assert Side().reach() == 0


def test_the_slope_is_that_of_least_squares():
    rng = np.random.default_rng(0)
    x = rng.normal(size=200)
    y = 0.7 * x + 0.1 + rng.normal(scale=0.2, size=200)
    slope = Slope()
    slope.add(x[:150], y[:150])
    slope.add(np.append(x[150:], np.nan), np.append(y[150:], 1.0))
    (expected, _), covariance = np.polyfit(x, y, 1, cov="unscaled")[0], np.polyfit(x, y, 1, cov=True)[1]
    assert slope.fit() == pytest.approx((expected, covariance[0, 0] ** 0.5))
    flat = Slope()
    flat.add(np.full(50, 0.3), rng.normal(size=50))
    assert flat.fit() is None
