"""What is in memory together."""

import pytest
from PIL import Image

from spr.pipeline import decoding
from spr.pipeline.decoding import decode_ahead, in_groups
from spr.records import RegionObject, RegionQuery


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(decoding, "PIXELS_AT_ONCE", 100)


@pytest.mark.usefixtures("small")
def test_a_group_ends_when_it_has_enough_items_or_enough_pixels():
    # 40 + 70 and 100 reach 100 pixels; 250 passes it alone; then three items are the most; 30 is left.
    sizes = [40, 70, 100, 250, 1, 2, 3, 30]
    assert list(in_groups(sizes, 3, int)) == [[40, 70], [100], [250], [1, 2, 3], [30]]
    assert list(in_groups([], 3, int)) == []


@pytest.mark.usefixtures("small")
def test_fewer_large_images_are_decoded_ahead():
    loaded = []

    class Images:
        def load(self, file_name, size_wh):
            loaded.append(file_name)
            return Image.new("RGB", size_wh)

    things = (RegionObject("1", "cat", (0, 0, 5, 5), inside=True),)
    queries = [RegionQuery(f"{k}/0", str(k), f"{k}.png", 6, 6, (0, 0, 5, 5), "1", things) for k in range(20)]
    images = decode_ahead(queries, Images())
    # 36 pixels each: the third exceeds 100, so the first is due before a fourth is decoded.
    assert next(images)[0][0].image_id == "0"
    assert len(loaded) <= 3
    assert [group[0].image_id for group, _ in images] == [str(k) for k in range(1, 20)]
    assert sorted(loaded) == sorted(f"{k}.png" for k in range(20))
