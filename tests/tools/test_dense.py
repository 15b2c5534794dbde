import torch

from tools.embedded.dense import DenseHead, Objects, dense_loss, owners, paired_iou, soft_coordinates


def objects(*items: tuple[int, list[float]]) -> Objects:
    return Objects(torch.tensor([[kind for kind, _ in items]]), torch.tensor([[box for _, box in items]]))


def test_a_patch_belongs_to_the_object_whose_box_contains_its_centre() -> None:
    # Grid 2: centres at 0.25 and 0.75. The box covers the left half: patches 0 and 2.
    assert owners(objects((5, [0.0, 0.0, 0.5, 1.0])), 2).tolist() == [[0, -1, 0, -1]]


def test_an_object_smaller_than_a_patch_still_has_one() -> None:
    # Its box contains no centre; its own centre (0.6, 0.6) is within half a patch of (0.75, 0.75).
    assert owners(objects((5, [0.55, 0.55, 0.65, 0.65])), 2).tolist() == [[-1, -1, -1, 0]]


def test_the_relatively_nearer_object_wins_and_padding_never_does() -> None:
    small, large = [0.15, 0.15, 0.35, 0.35], [0.0, 0.0, 1.0, 1.0]
    # Patch 0 at (0.25, 0.25): the small box's centre, half a side off the large one's.
    assert owners(objects((1, large), (2, small)), 2)[0, 0] == 1
    assert owners(objects((1, large), (-1, small)), 2)[0, 0] == 0


def test_paired_iou_of_boxes_that_half_overlap_and_of_separate_boxes() -> None:
    a = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]])
    b = torch.tensor([[0.0, 0.0, 1.0, 0.5], [2.0, 0.0, 3.0, 1.0]])
    iou, giou = paired_iou(a, b)
    assert torch.allclose(iou, torch.tensor([0.5, 0.0]))
    # Separate boxes: union 2, hull 3 × 1, so the generalised IoU is 0 - (3 - 2) / 3.
    assert torch.allclose(giou, torch.tensor([0.5, -1 / 3]))


def test_soft_targets_are_centred_and_add_up_to_one() -> None:
    targets = soft_coordinates(torch.tensor([37.0, 0.0]), 0.8)
    assert torch.allclose(targets.sum(dim=-1), torch.ones(2))
    assert targets.argmax(dim=-1).tolist() == [37, 0]
    assert targets[0, 36] == targets[0, 38]


def test_the_dense_loss_falls_when_its_head_learns_one_view() -> None:
    torch.manual_seed(0)
    head, features = DenseHead(16), torch.randn(1, 16, 16)
    shown = objects((9, [0.0, 0.0, 0.5, 0.5]), (20, [0.6, 0.6, 0.9, 0.9]))
    optimiser = torch.optim.Adam(head.parameters(), lr=0.02)
    first = dense_loss(head(features), shown)[0].item()
    for _ in range(200):
        optimiser.zero_grad()
        loss, figures = dense_loss(head(features), shown)
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.2 * first
    assert figures["dense_names"].item() > 0.999
    assert figures["dense_iou"].item() > 0.9
