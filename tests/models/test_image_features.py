"""Features of several images, as the models take them."""

import torch

from spr.models.image_features import Features, image_outputs

PLAIN = Features(torch.arange(6.0).reshape(3, 2))
DEEP = Features(torch.ones(2, 2), (torch.full((2, 2), 3.0), torch.full((2, 2), 4.0)))


def test_features_are_given_to_the_model_as_it_takes_them():
    listed = image_outputs((PLAIN, PLAIN), joined=False)
    assert [part.shape for part in listed.pooler_output] == [(3, 2), (3, 2)]
    assert listed.deepstack_features is None
    assert image_outputs((PLAIN, PLAIN), joined=True).pooler_output.shape == (6, 2)
    deep = image_outputs((DEEP, DEEP), joined=False).deepstack_features
    # By level first, then by image.
    assert [[part.mean().item() for part in level] for level in deep] == [[3.0, 3.0], [4.0, 4.0]]
