"""Names and shapes of the tensors of CogVLM-17B, compared with the published ones."""

import torch

from spr.models.ported.cogvlm.configuration import CogVLMConfig
from spr.models.ported.cogvlm.modeling import CogVLMForCausalLM

# The names in the published index of CogVLM2, whose classes these are, without what that alone has: a convolution
# behind the vision tower and the visual expert's biases. D, V, E and M are the sizes below, N numbers layers.
WHOLE = {
    "lm_head.weight": "V D",
    "model.embed_tokens.weight": "V D",
    "model.norm.weight": "D",
    "model.vision.boi": "1 1 D",
    "model.vision.eoi": "1 1 D",
    "model.vision.linear_proj.dense_4h_to_h.weight": "D M",
    "model.vision.linear_proj.dense_h_to_4h.weight": "M D",
    "model.vision.linear_proj.gate_proj.weight": "M D",
    "model.vision.linear_proj.linear_proj.weight": "D E",
    "model.vision.linear_proj.norm1.bias": "D",
    "model.vision.linear_proj.norm1.weight": "D",
    "model.vision.patch_embedding.cls_embedding": "1 E",
    "model.vision.patch_embedding.position_embedding.weight": "1226 E",
    "model.vision.patch_embedding.proj.bias": "E",
    "model.vision.patch_embedding.proj.weight": "E 3 14 14",
}
DECODER = {
    "input_layernorm.weight": "D",
    "mlp.language_mlp.down_proj.weight": "D M",
    "mlp.language_mlp.gate_proj.weight": "M D",
    "mlp.language_mlp.up_proj.weight": "M D",
    "mlp.vision_mlp.down_proj.weight": "D M",
    "mlp.vision_mlp.gate_proj.weight": "M D",
    "mlp.vision_mlp.up_proj.weight": "M D",
    "post_attention_layernorm.weight": "D",
    "self_attn.language_expert_dense.weight": "D D",
    "self_attn.language_expert_query_key_value.weight": "3D D",
    "self_attn.rotary_emb.inv_freq": "64",
    "self_attn.vision_expert_dense.weight": "D D",
    "self_attn.vision_expert_query_key_value.weight": "3D D",
}
TOWER = {
    "attention.dense.bias": "E",
    "attention.dense.weight": "E E",
    "attention.query_key_value.bias": "3E",
    "attention.query_key_value.weight": "3E E",
    "input_layernorm.bias": "E",
    "input_layernorm.weight": "E",
    "mlp.fc1.bias": "F",
    "mlp.fc1.weight": "F E",
    "mlp.fc2.bias": "E",
    "mlp.fc2.weight": "E F",
    "post_attention_layernorm.bias": "E",
    "post_attention_layernorm.weight": "E",
}
SIZES = {"D": 4096, "3D": 12288, "V": 32000, "M": 11008, "E": 1792, "3E": 5376, "F": 15360}


def test_the_default_config_gives_the_published_names_and_shapes():
    with torch.device("meta"):
        state = CogVLMForCausalLM(CogVLMConfig()).state_dict()
    expected = dict(WHOLE)
    expected |= {f"model.layers.{k}.{name}": shape for k in range(32) for name, shape in DECODER.items()}
    layers = "model.vision.transformer.layers"
    expected |= {f"{layers}.{k}.{name}": shape for k in range(63) for name, shape in TOWER.items()}
    shapes = {name: tuple(SIZES.get(part) or int(part) for part in text.split()) for name, text in expected.items()}
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == shapes
    # 15 tensors outside the layers, 32 layers with 13 and 63 with 12.
    assert len(state) == 15 + 32 * 13 + 63 * 12 == 1187
    # In bfloat16 that is what the published folders are listed with, 32.9 GiB.
    assert round(2 * sum(tensor.numel() for tensor in state.values()) / 2**30, 1) == 32.9
