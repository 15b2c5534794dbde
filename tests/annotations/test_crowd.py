"""`replace_crowds` on scenes worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from spr.annotations import CrowdDetector, CrowdQuery, replace_crowds
from spr.core.errors import RecordError
from spr.core.reasons import OBJECT_REASONS
from spr.records import Detection, ImageObject, ImageObjects

CROWD = ImageObject("7", "sheep", (0, 0, 60, 40))
IMAGE = ImageObjects("1", "a.jpg", 100, 50, (CROWD, ImageObject("8", "sheep", (80, 0, 100, 20))))


def detecting(*answers: tuple[list[list[float]], list[float]]) -> CrowdDetector:
    return lambda queries: [
        [Detection(query.category, box, score) for box, score in zip(*answer, strict=True)]
        for answer, query in zip(answers, queries, strict=True)
    ]


def replaced(
    *answers: tuple[list[list[float]], list[float]], image: ImageObjects = IMAGE, crowds: Sequence[str] = ("7",)
) -> tuple[list[tuple[str, tuple[float, ...], str, float | None]], list[tuple[str, str]]]:
    (result,), drops = replace_crowds([image], [crowds], detecting(*answers))
    rows = [(o.id, o.box, o.source, None if o.score is None else round(o.score, 6)) for o in result.objects]
    return rows, drops


OTHER = ("8", (80, 0, 100, 20), "annotation", None)


def test_without_a_detector_crowds_are_dropped_and_counted() -> None:
    images, drops = replace_crowds([IMAGE], [{"7"}], None)
    assert [o.id for o in images[0].objects] == ["8"]
    assert drops == [("7", "crowd_without_detector")]


def test_detections_replace_the_crowd_best_first_with_their_scores() -> None:
    objects, drops = replaced(([[30, 0, 50, 20], [0, 0, 20, 20]], [0.4, 0.9]))
    assert objects == [
        OTHER,
        ("7#1", (0, 0, 20, 20), "detector", 0.9),
        ("7#2", (30, 0, 50, 20), "detector", 0.4),
    ]
    assert drops == []


def test_the_detector_is_called_once_with_all_crowds() -> None:
    asked: list[Sequence[CrowdQuery]] = []

    def detector(queries: Sequence[CrowdQuery]) -> list[list[Detection]]:
        asked.append(queries)
        return [[Detection("", (0, 0, 10, 10), 0.5)] for _ in queries]

    plain = ImageObjects("2", "b.jpg", 9, 9, (ImageObject("1", "dog", (0, 0, 5, 5)),))
    second = ImageObjects("3", "c.jpg", 30, 30, (ImageObject("9", "cow", (0, 0, 20, 20)),))
    images, drops = replace_crowds([IMAGE, plain, second], [{"7"}, set(), {"9"}], detector)
    assert asked == [
        [
            CrowdQuery("1", "a.jpg", (100, 50), "sheep", (0, 0, 60, 40)),
            CrowdQuery("3", "c.jpg", (30, 30), "cow", (0, 0, 20, 20)),
        ]
    ]
    assert [[o.id for o in image.objects] for image in images] == [["8", "7#1"], ["1"], ["9#1"]]
    assert [o.category for o in images[2].objects] == ["cow"]
    assert drops == []


def test_a_detection_that_overlaps_a_better_one_is_suppressed() -> None:
    # shared 15 × 20 = 300 of 400 + 400 − 300 = 500: IoU 0.6; for the third 10 × 20 = 200 of 600: IoU 1/3
    objects, drops = replaced(([[5, 0, 25, 20], [0, 0, 20, 20], [10, 0, 30, 20]], [0.5, 0.9, 0.3]))
    assert [o[0] for o in objects] == ["8", "7#1", "7#3"]
    assert drops == [("7#2", "detection_suppressed")]


def test_detections_at_exactly_the_threshold_are_kept() -> None:
    # 20 × 20 over 40 × 20: IoU 0.5, which is not above 0.5
    objects, drops = replaced(([[0, 0, 40, 20], [0, 0, 20, 20]], [0.9, 0.5]))
    assert [o[0] for o in objects] == ["8", "7#1", "7#2"]
    assert drops == []


def test_a_detection_of_an_annotated_object_is_dropped() -> None:
    known = ImageObject("8", "sheep", (0, 0, 20, 20))
    image = ImageObjects("1", "a.jpg", 100, 50, (CROWD, known))
    objects, drops = replaced(([[0, 0, 20, 18], [30, 0, 50, 20]], [0.9, 0.5]), image=image)  # IoU 360 / 400 = 0.9
    assert [o[0] for o in objects] == ["8", "7#2"]
    assert drops == [("7#1", "detection_duplicate")]


def test_an_object_of_another_category_is_not_a_duplicate() -> None:
    image = ImageObjects("1", "a.jpg", 100, 50, (CROWD, ImageObject("8", "dog", (0, 0, 20, 20))))
    objects, drops = replaced(([[0, 0, 20, 20]], [0.9]), image=image)
    assert [o[0] for o in objects] == ["8", "7#1"]
    assert drops == []


def test_a_crowd_whose_objects_are_all_annotated_is_dropped() -> None:
    image = ImageObjects("1", "a.jpg", 100, 50, (CROWD, ImageObject("8", "sheep", (0, 0, 20, 20))))
    objects, drops = replaced(([[0, 0, 20, 20]], [0.9]), image=image)
    assert [o[0] for o in objects] == ["8"]
    assert drops == [("7#1", "detection_duplicate"), ("7", "crowd_nothing_new")]


@pytest.mark.parametrize("answer", [([], []), ([[70, 0, 90, 20]], [0.9]), ([[-20, -20, 0, 0]], [0.9])])
def test_a_crowd_without_detections_is_dropped(answer: tuple[list[list[float]], list[float]]) -> None:
    objects, drops = replaced(answer)
    assert objects == [OTHER]
    assert drops[-1] == ("7", "crowd_nothing_found")
    assert drops[:-1] == [("7#1", "detection_outside_crowd")] * len(answer[1])


def test_a_detection_needs_half_of_its_area_in_the_crowd() -> None:
    # the crowd ends at x = 60: 10 of 20 columns are inside, then 9 of 20
    objects, drops = replaced(([[50, 0, 70, 10], [51, 20, 71, 30]], [0.9, 0.8]))
    assert [o[:2] for o in objects] == [("8", OTHER[1]), ("7#1", (50, 0, 70, 10))]
    assert drops == [("7#2", "detection_outside_crowd")]


def test_detections_are_clipped_to_the_image() -> None:
    objects, _ = replaced(([[-4, -2, 20, 20]], [0.9]))
    assert objects[1][:2] == ("7#1", (0, 0, 20, 20))


def test_new_objects_of_one_crowd_count_for_the_next() -> None:
    image = ImageObjects("1", "a.jpg", 100, 50, (ImageObject("9", "sheep", (0, 0, 50, 50)), CROWD))
    same = ([[0, 0, 20, 20]], [0.9])
    objects, drops = replaced(same, same, image=image, crowds=("9", "7"))
    assert [o[0] for o in objects] == ["7#1"]
    assert drops == [("9#1", "detection_duplicate"), ("9", "crowd_nothing_new")]


def test_the_order_of_detections_does_not_matter() -> None:
    boxes: list[list[float]] = [[0, 0, 20, 20], [30, 0, 50, 20], [1, 0, 21, 20], [0, 20, 20, 40]]
    scores = [0.5, 0.5, 0.5, 0.9]
    expected = replaced((boxes, scores))
    assert replaced((boxes[::-1], scores[::-1])) == expected


def test_thresholds_are_arguments() -> None:
    detector = detecting(([[0, 0, 20, 20], [5, 0, 25, 20], [51, 20, 71, 30]], [0.9, 0.5, 0.4]))
    (result,), drops = replace_crowds([IMAGE], [{"7"}], detector, nms_iou=0.7, min_inside=0.4)
    assert [o.id for o in result.objects] == ["8", "7#1", "7#2", "7#3"]
    assert drops == []


@pytest.mark.parametrize(
    "answer",
    [
        ([[0, 0, 1]], [0.5]),
        ([0], [0.5]),
        ([[0, 0, float("nan"), 9]], [0.5]),
        ([[0, 0, 9, 9]], [float("nan")]),
        ([[0, 0, 9, 9]], [1.5]),
    ],
)
def test_malformed_detections_are_an_error_that_names_the_category(
    answer: tuple[list[list[float]], list[float]],
) -> None:
    with pytest.raises(RecordError, match="detection of 'sheep'"):
        replace_crowds([IMAGE], [{"7"}], detecting(answer))


def test_a_detector_that_leaves_a_query_out_is_an_error() -> None:
    with pytest.raises(RecordError, match="did not answer each query"):
        replace_crowds([IMAGE], [{"7"}], lambda _: [])


def test_every_reason_used_is_explained() -> None:
    crowds = {reason for reason in OBJECT_REASONS if reason.startswith(("crowd_", "detection_"))}
    assert crowds == {
        "crowd_without_detector",
        "crowd_nothing_found",
        "crowd_nothing_new",
        "detection_outside_crowd",
        "detection_suppressed",
        "detection_duplicate",
    }
