"""What is in memory at the same time."""

from PIL import Image

from spr.core.images import ImageProblem
from spr.pipeline.decoding import decode_ahead, in_groups
from spr.records import RegionObject, RegionQuery


def test_a_group_ends_when_it_has_enough_items_or_enough_pixels():
    # 40 + 70 and 100 reach 100 pixels; 250 passes it alone; then three items are the most; 30 is left.
    sizes = [40, 70, 100, 250, 1, 2, 3, 30]
    options = {"most_items": 3, "most_pixels": 100, "small_pixels": 0}
    assert list(in_groups(sizes, int, **options)) == [[40, 70], [100], [250], [1, 2, 3], [30]]
    assert list(in_groups([], int, most_items=3)) == []


def test_groups_of_small_items_are_longer():
    # Five items of less than 20 pixels; with 20 pixels or more, the three items that are there already are enough.
    options = {"most_items": 3, "most_pixels": 100, "most_small_items": 5, "small_pixels": 20}
    sizes = [1, 1, 1, 1, 1, 1, 5, 5, 10, 10, 10, 9, 1, 1]
    assert list(in_groups(sizes, int, **options)) == [[1] * 5, [1, 5, 5, 10], [10, 10, 9], [1, 1]]


def queries_of(numbers):
    things = (RegionObject("1", "cat", (0, 0, 5, 5), inside=True),)
    return [RegionQuery(f"{k}/0", str(k), f"{k}.png", 6, 6, (0, 0, 5, 5), "1", things) for k in numbers]


class Images:
    def __init__(self):
        self.loaded = []

    def load(self, file_name, size_wh):
        self.loaded.append(file_name)
        if file_name == "bad.png":
            raise ImageProblem("image_missing", "")
        return Image.new("RGB", size_wh)


def test_fewer_large_images_are_decoded_ahead():
    images = Images()
    decoded = decode_ahead(queries_of(range(20)), images, print, most_pixels=100)
    # 36 pixels each: the third exceeds 100, so the first is due before a fourth is decoded.
    assert next(decoded)[0].image_id == "0"
    assert len(images.loaded) <= 3
    assert [query.image_id for query, _ in decoded] == [str(k) for k in range(1, 20)]
    assert sorted(images.loaded) == sorted(f"{k}.png" for k in range(20))


def test_an_image_that_can_not_be_used_is_dropped_once_for_all_its_queries():
    images, dropped = Images(), []
    queries = queries_of([1, "bad", 2, "bad", 1])
    decoded = decode_ahead(queries, images, lambda *drop: dropped.append(drop))
    assert [query.image_id for query, _ in decoded] == ["1", "1", "2"]
    assert dropped == [("image", "bad", "image_missing")]
    assert len(images.loaded) == 3
