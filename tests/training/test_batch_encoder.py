"""With sharded weights, every process runs the vision tower as often as the one that lacks the most features."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType

from spr.training.vision_cache import BatchEncoder, Features, MemoryFeatures


class Encoder:
    """Two pairs, of whose images some have features already."""

    def __init__(self, known):
        self.model, self.store = SimpleNamespace(dtype=torch.bfloat16), MemoryFeatures()
        for key in known:
            self.store.put(key, Features(torch.ones(1, 2)))

    def finish(self, pair, read, look):
        found = self.store.get(read.key)
        return pair, look(read.vision) if found is None else found


@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MULTI_GPU])
@pytest.mark.parametrize(("known", "most"), [("", 2), ("a", 2), ("ab", 2), ("ab", 0)])
def test_a_process_whose_features_are_all_on_disk_keeps_step_with_one_that_lacks_some(kind, known, most):
    looked = []

    def model(vision):
        looked.append(vision)
        return torch.ones(1, 2), ()  # float32, as Accelerate's mixed precision hands it on

    accelerator = SimpleNamespace(
        distributed_type=kind, device=torch.device("cpu"), gather=lambda mine: torch.cat([mine, torch.tensor([most])])
    )
    encoder = BatchEncoder(Encoder(known), model, model, accelerator)
    read = [SimpleNamespace(key=key, vision={"pixel_values": torch.zeros(1)}) for key in "ab"]
    made = encoder.encode(["one", "two"], read)
    missing = 2 - len(known)
    assert [pair for pair, _ in made] == ["one", "two"]
    assert len(looked) == (missing if kind == DistributedType.MULTI_GPU else most)
    assert all("pixel_values" in vision for vision in looked)
    assert [features.tokens.dtype for _, features in made].count(torch.bfloat16) == missing
