"""FlashAttention's pieces and FlexAttention's block masks give what attention under the dense mask gives.

Neither kernel runs here with gradients: flash-attn needs a GPU, and FlexAttention has no backward pass on CPUs. So
their functions are replaced by plain attention of the same signature.
"""

import shutil
from functools import lru_cache

import pytest
import torch
from torch import nn
from torch.nn.attention.flex_attention import create_mask, flex_attention

from spr.models.errors import ModelError
from spr.models.families import FAMILIES
from spr.training import block_masks, flash_pieces
from spr.training.batches import EncodedPair, PairSpan, collate, shared_mask
from spr.training.block_masks import TokenRoles, attend_blocks, block_mask
from spr.training.flash_pieces import Pieces, attend_pieces, check_kernel
from spr.training.loss import PairLogps, pair_losses
from spr.training.pair_model import PairModel
from spr.training.pairs import trl_pairs
from spr.training.prefix_attention import loaded_with
from spr.training.shared_prefix import why_not_shared
from spr.training.trainee import load_trainee
from spr.training.vision_cache import Features

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SHARED = [name for name, family in FAMILIES.items() if family.trainable and family.shared_prefix]
CAUSAL = [name for name in SHARED if FAMILIES[name].layer_masks is None and not FAMILIES[name].bidirectional_image]
# The others, which are built like one of these, take seconds more.
FEW = {"llava_onevision", "qwen2_5_vl", "gemma3", "molmo2", "kimi_k25", "cogvlm"}
# Two pairs of unlike lengths with padding after the first, and two pairs in one sequence with padding.
APART = [PairSpan(0, 0, 5, 8, 10), PairSpan(1, 0, 6, 7, 12)]
TOGETHER = [PairSpan(0, 0, 3, 5, 6), PairSpan(0, 6, 8, 9, 11)]


def flash_attn_varlen_func(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
    block_table=None,
):
    """What flash-attn 2.8 documents for this function (Dao-AILab/flash-attention, flash_attn_interface.py)."""
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert (dropout_p, causal, window_size, softcap) == (0.0, True, (-1, -1), 0.0)
    assert (alibi_slopes, deterministic, return_attn_probs, block_table) == (None, False, False, None)
    assert softmax_scale is not None
    assert (q.shape[0], k.shape[0]) == (cu_seqlens_q[-1], cu_seqlens_k[-1])
    assert q.shape[2] == k.shape[2] == v.shape[2], "heads of one size"
    assert (max_seqlen_q, max_seqlen_k) == (cu_seqlens_q.diff().max(), cu_seqlens_k.diff().max())
    outputs = []
    for piece in range(len(cu_seqlens_q) - 1):
        own = slice(cu_seqlens_q[piece], cu_seqlens_q[piece + 1])
        seen = slice(cu_seqlens_k[piece], cu_seqlens_k[piece + 1])
        groups = q.shape[1] // k.shape[1]
        key, value = (part[seen].transpose(0, 1).repeat_interleave(groups, dim=0) for part in (k, v))
        scores = q[own].transpose(0, 1) @ key.mT * softmax_scale
        rows, columns = scores.shape[1:]
        mask = torch.ones(rows, columns, dtype=torch.bool).tril(columns - rows)
        outputs.append((scores.masked_fill(~mask, -torch.inf).softmax(-1) @ value).transpose(0, 1))
    return torch.cat(outputs)


def varlen_attn(
    query,
    key,
    value,
    cu_seq_q,
    cu_seq_k,
    max_q,
    max_k,
    *,
    return_aux=None,
    scale=None,
    window_size=(-1, -1),
    enable_gqa=False,
    seqused_k=None,
    block_table=None,
    num_splits=None,
):
    """What PyTorch 2.13 documents for `torch.nn.attention.varlen.varlen_attn`; causal is ``window_size=(-1, 0)``."""
    assert (return_aux, window_size, seqused_k, block_table, num_splits) == (None, (-1, 0), None, None, None)
    assert enable_gqa or query.shape[1] == key.shape[1]
    places = (cu_seq_q, cu_seq_k, max_q, max_k)
    return flash_attn_varlen_func(query, key, value, *places, softmax_scale=scale, causal=True)


@lru_cache(maxsize=4)
def visible(blocks) -> torch.Tensor:
    """``(S, 1, rows, columns)`` bool: what a kernel computes that skips the blocks that are not listed."""
    rows, columns = blocks.seq_lengths
    inside = create_mask(blocks.mask_mod, blocks.kv_num_blocks.shape[0], 1, rows, columns, "cpu")

    def listed(numbers, indices):
        first = torch.arange(indices.shape[-1]) < numbers[..., None]
        grid = torch.zeros(indices.shape, dtype=torch.bool).scatter(-1, indices.long(), first)
        size = blocks.BLOCK_SIZE[0]
        return grid.repeat_interleave(size, 2).repeat_interleave(size, 3)[:, :, :rows, :columns]

    whole = listed(blocks.full_kv_num_blocks, blocks.full_kv_indices)
    return whole | (listed(blocks.kv_num_blocks, blocks.kv_indices) & inside)


def flex(_module, query, key, value, attention_mask, scaling=None, softcap=None, **_):
    """Attention with the signature of transformers' `flex_attention_forward`."""
    assert softcap is None
    assert query.dtype == key.dtype == value.dtype
    groups = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = (query @ key.mT * scale).masked_fill(~visible(attention_mask), -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2), None


def families(names):
    """The families as parameters; all but `FEW` of them are slow."""
    return [pytest.param(name, marks=[] if name in FEW else pytest.mark.slow) for name in names]


@pytest.fixture(params=["flash-attn", "torch"])
def flash(request, monkeypatch):
    """FlashAttention on this machine: by flash-attn's function, or by PyTorch's."""
    installed = request.param == "flash-attn"
    monkeypatch.setattr(flash_pieces, "is_flash_attn_2_available", lambda: installed)
    functions = (None, flash_attn_varlen_func, None, None, None), (None, None)
    monkeypatch.setattr(flash_pieces, "lazy_import_flash_attention", lambda _: functions)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 4 × 4, found for 8 rows at once, so that small batches have many."""
    monkeypatch.setattr(block_masks, "BLOCK", 4)
    monkeypatch.setattr(block_masks, "_CHUNK", 8)
    monkeypatch.setattr(block_masks, "flex_attention_forward", flex)


def test_a_pair_is_two_causal_pieces():
    # Prompts are columns 0 to 4 and 0 to 5; in the second sequence, column c is token 12 + c.
    pieces = Pieces.of(APART, 12, CPU)
    assert pieces.query_ends.tolist() == [0, 8, 10, 17, 22]
    assert pieces.key_ends.tolist() == [0, 8, 15, 22, 33]
    assert pieces.queries.tolist() == [*range(10), *range(12, 24)]
    assert pieces.keys.tolist() == [*range(8), 0, 1, 2, 3, 4, 8, 9, *range(12, 19), *range(12, 18), *range(19, 24)]
    assert (pieces.most_queries, pieces.most_keys) == (8, 11)
    # In the last layer, rows before the prompts' last tokens are left out.
    last = Pieces.of(APART, 12, CPU, first=4)
    assert last.queries.tolist() == [*range(4, 10), *range(16, 24)]
    assert last.keys.tolist() == pieces.keys.tolist()


def test_a_pair_without_a_rejected_answer_is_one_piece():
    pieces = Pieces.of([PairSpan(0, 0, 2, 4, 4)], 5, CPU)
    assert pieces.query_ends.tolist() == pieces.key_ends.tolist() == [0, 4]


@pytest.mark.usefixtures("flash")
@pytest.mark.parametrize("spans", [APART, TOGETHER])
@pytest.mark.parametrize("groups", [1, 2])
def test_pieces_give_what_the_dense_mask_gives(spans, groups):
    sequences, width, first = spans[-1].row + 1, 12, 4
    mask = shared_mask(spans, sequences, width)
    tokens = torch.zeros(sequences, width, dtype=torch.bool)
    for row, start, _, _, end in spans:
        tokens[row, start:end] = True
    draw = torch.Generator().manual_seed(5)
    # Keys of another size than values, as in layers with latent keys.
    shapes = [(4, 8), (4 // groups, 8), (4 // groups, 6)]
    inputs = [torch.randn(sequences, heads, width, size, generator=draw).double() for heads, size in shapes]
    weights = torch.randn(sequences, width, 4, 6, generator=draw).double() * tokens[:, :, None, None]
    pieces, last = (Pieces.of(spans, width, CPU, first=first) for first in (0, first))
    layer = nn.Module()

    def dense(query, key, value):
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
        scores = (query @ key.mT * 0.3).masked_fill(~mask, -torch.inf)
        return (scores.softmax(-1) @ value).transpose(1, 2)

    def pieced(*states, module=layer):
        options = {"pieces": pieces, "last_pieces": last, "last_attention": layer if module is None else None}
        return attend_pieces(layer, *states, None, **options, scaling=0.3)[0]

    made = []
    for compute in (dense, pieced):
        states = [part.clone().requires_grad_() for part in inputs]
        output = compute(*states)
        (output * weights).sum().backward()
        made.append([output * tokens[:, :, None, None], *(part.grad for part in states)])
    for expected, found in zip(*made, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    skipped = pieced(*inputs, module=None)
    torch.testing.assert_close(skipped[:, first:], made[1][0][:, first:], rtol=1e-12, atol=1e-12)
    assert not skipped[:, :first].any()


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("spans", [APART, TOGETHER])
@pytest.mark.parametrize("first", [0, 3, 5])
def test_block_masks_are_the_dense_mask_without_its_empty_blocks(spans, first):
    sequences = spans[-1].row + 1
    roles = TokenRoles.of(spans, torch.arange(12).expand(sequences, -1))
    blocks = block_mask(roles, images=True, window=None, first=first)
    tokens = (roles.pair >= 0)[:, None, first:, None]
    seen = visible(blocks)
    assert torch.equal(seen & tokens, shared_mask(spans, sequences, 12)[:, :, first:] & tokens)
    assert seen.any(-1).all(), "a row that sees nothing would be NaN"
    if first == 0:
        computed = (blocks.kv_num_blocks + blocks.full_kv_num_blocks).sum().item()
        # The blocks on and below the diagonal, without one of two prompts' that are apart in one sequence.
        assert computed <= 6 * sequences < 9 * sequences


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_the_kernel_itself_computes_on_cpus_what_the_dense_mask_gives():
    roles = TokenRoles.of(APART, torch.arange(12).expand(2, -1))
    draw = torch.Generator().manual_seed(6)
    states = [torch.randn(2, 4, 12, 16, generator=draw) for _ in range(3)]
    found = flex_attention(*states, block_mask=block_mask(roles, images=True, window=None))
    expected = nn.functional.scaled_dot_product_attention(*states, attn_mask=shared_mask(APART, 2, 12))
    for row, end in ((0, 10), (1, 12)):
        torch.testing.assert_close(found[row, :, :end], expected[row, :, :end], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of PyTorch's own modules, while it compiles
@pytest.mark.skipif(shutil.which("g++") is None, reason="PyTorch compiles kernels for CPUs with g++")
def test_the_compiled_kernel_computes_on_cpus_what_the_dense_mask_gives(monkeypatch):
    # Compiled, it skips blocks. An image in both directions and a window are in the mask of the last call.
    monkeypatch.setattr(block_masks, "_CHUNK", 128)
    spans, width, first = [PairSpan(0, 0, 200, 260, 290), PairSpan(1, 0, 210, 250, 330)], 330, 199
    roles = TokenRoles.of(spans, torch.arange(width).expand(2, -1))
    whole, last = (block_mask(roles, images=True, window=None, first=first) for first in (0, first))
    draw = torch.Generator().manual_seed(8)
    query, key, value = (torch.randn(2, heads, width, 32, generator=draw) for heads in (4, 2, 2))
    layer = nn.Module().eval()

    def dense(mask):
        states = query, key.repeat_interleave(2, 1), value.repeat_interleave(2, 1)
        return nn.functional.scaled_dot_product_attention(*states, attn_mask=mask).transpose(1, 2)

    with torch.no_grad():
        full, _ = attend_blocks(layer, query, key, value, whole, last_mask=last)
        short, _ = attend_blocks(layer, query, key, value, whole, last_mask=last, last_attention=layer)
    expected = dense(shared_mask(spans, 2, width))
    for row, *_, end in spans:
        torch.testing.assert_close(full[row, :end], expected[row, :end], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(short[row, first:end], expected[row, first:end], rtol=1e-5, atol=1e-5)
    image = (torch.arange(width) > 10) & (torch.arange(width) < 100)
    windowed = block_mask(roles._replace(image=image.int().repeat(2, 1)), images=True, window=64)
    with torch.no_grad():
        found, _ = attend_blocks(layer, query, key, value, windowed, last_mask=last)
    torch.testing.assert_close(found, dense(visible(windowed)), rtol=1e-5, atol=1e-5)
    assert windowed.sparsity() > whole.sparsity() > 0


@pytest.mark.usefixtures("small_blocks")
def test_the_last_layer_computes_its_last_rows_only():
    roles = TokenRoles.of(APART, torch.arange(12).expand(2, -1))
    whole, last = (block_mask(roles, images=True, window=None, first=first) for first in (0, 4))
    draw = torch.Generator().manual_seed(7)
    states = [torch.randn(2, 2, 12, 8, generator=draw) for _ in range(3)]
    layer = nn.Module()
    full, _ = attend_blocks(layer, *states, whole, last_mask=last)
    short, _ = attend_blocks(layer, *states, whole, last_mask=last, last_attention=layer)
    torch.testing.assert_close(short[:, 4:], full[:, 4:])
    assert not short[:, :4].any()


def test_the_limit_of_compilations_is_raised_and_never_lowered(monkeypatch):
    config = pytest.importorskip("torch._dynamo.config")
    for before, after in ((8, 64), (100, 100)):
        monkeypatch.setattr(config, "recompile_limit", before)
        block_masks.allow_compilations()
        assert config.recompile_limit == after


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("attention", ["flash_attention_2", "flex_attention"])
def test_on_a_gpu_the_kernels_give_what_the_dense_mask_gives(attention):
    spans, width = [PairSpan(0, 0, 200, 260, 290), PairSpan(1, 0, 210, 250, 330)], 330
    draw = torch.Generator().manual_seed(9)
    inputs = [torch.randn(2, heads, width, 64, generator=draw).to(CUDA, torch.bfloat16) for heads in (4, 2, 2)]
    weights = torch.randn(2, width, 4, 64, generator=draw).to(CUDA)
    weights[0, 290:] = 0
    mask = shared_mask(spans, 2, width).to(CUDA)
    layer = nn.Module()
    pieces = Pieces.of(spans, width, CUDA)
    blocks = block_mask(TokenRoles.of(spans, torch.arange(width, device=CUDA).expand(2, -1)), images=True, window=None)

    def dense(query, key, value):
        states = (part.float().repeat_interleave(4 // part.shape[1], 1) for part in (query, key, value))
        return nn.functional.scaled_dot_product_attention(*states, attn_mask=mask).transpose(1, 2)

    def kernel(*states):
        if attention == "flash_attention_2":
            return attend_pieces(layer, *states, None, pieces=pieces, last_pieces=pieces)[0]
        return attend_blocks(layer, *states, blocks, last_mask=blocks)[0]

    made = []
    for compute in (dense, kernel):
        states = [part.clone().requires_grad_() for part in inputs]
        output = compute(*states)
        (output.float() * weights).sum().backward()
        made.append([output.float() * (weights != 0), *(part.grad.float() for part in states)])
    for expected, found in zip(*made, strict=True):
        torch.testing.assert_close(found, expected, rtol=0.05, atol=0.02 * expected.abs().max().item())


@pytest.fixture
def compare(trainable_folder, pairs_folder, stir, settings, tmp_path):
    """Log-probabilities and gradients with an attention and with the default one, in float64."""

    def make(model_type, attention, **changes):
        config = settings(**changes)
        trainee = load_trainee(str(trainable_folder(model_type)), config, CPU, features=tmp_path)
        trainee.model.base.set_experts_implementation("eager")  # the default one has no float64
        encoder, peft = trainee.encoder, trainee.model.double().peft
        stir(trainee.model)
        planned, _ = encoder.plan(list(trl_pairs(pairs_folder))[:3], 4096)

        def look(vision):
            with torch.no_grad():
                return Features(*trainee.model(vision=vision))

        pairs = [encoder.finish(one, encoder.process(one), look) for one in planned]
        made = []
        for given in (None, attention):
            options = {"gradient_checkpointing": config.gradient_checkpointing, "attention": given}
            model = PairModel(peft, trainee.model.family, **options).train()
            batch = collate(pairs, encoder.pad, shared=True, dense=model.dense_masks)
            assert (batch.mask is None) == (given is not None)
            assert min(span.end for span in batch.spans) < batch.input_ids.shape[1], "there is padding"
            logps = PairLogps(*model(batch))
            reference = logps.chosen.detach() - 1, logps.rejected.detach() + 1
            pair_losses(logps, reference, config).loss.sum().backward()
            made.append((logps, {name: p.grad.clone() for name, p in peft.named_parameters() if p.requires_grad}))
            peft.zero_grad()
        kernel = trainee.model.base.get_submodule(trainee.model.family.decoder).config._attn_implementation
        assert kernel == "sdpa", "the model is left as it was"
        (one, gradients), (other, others) = made
        for name in ("chosen", "rejected"):
            torch.testing.assert_close(getattr(other, name), getattr(one, name), rtol=1e-6, atol=1e-6)
        assert any(gradient.abs().max() > 1e-3 for gradient in gradients.values())
        for name, gradient in gradients.items():
            torch.testing.assert_close(others[name], gradient, rtol=1e-5, atol=1e-6 * gradient.abs().max().item())

    return make


@pytest.mark.usefixtures("flash")
@pytest.mark.parametrize("flash", ["flash-attn"], indirect=True)
@pytest.mark.parametrize("model_type", families(CAUSAL))
def test_flash_attention_changes_no_number(model_type, compare):
    compare(model_type, "flash_attention_2")


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("model_type", families(SHARED))
def test_flex_attention_changes_no_number(model_type, compare):
    compare(model_type, "flex_attention")


@pytest.mark.usefixtures("flash", "small_blocks")
@pytest.mark.parametrize("attention", ["flash_attention_2", "flex_attention"])
def test_nor_with_activations_computed_again(attention, compare):
    compare("llava_onevision", attention, gradient_checkpointing=True)


def test_families_whose_masks_flash_attention_lacks_are_given_two_sequences_and_the_reason(trainable_folder, settings):
    left = set(SHARED) - set(CAUSAL)
    assert left == {"gemma3", "gemma4", "molmo2"}
    for model_type in left:
        trainee = load_trainee(str(trainable_folder(model_type)), settings(), CPU, features=trainable_folder("llava"))
        config, family = trainee.model.base.config, FAMILIES[model_type]
        assert "flex_attention" in why_not_shared(config, family, "flash_attention_2")
        for attention in ("sdpa", "flex_attention"):
            assert why_not_shared(config, family, attention) is None


def test_the_model_is_loaded_with_what_computes_the_rest(settings, monkeypatch):
    flash, flex = settings(attn_implementation="flash_attention_2"), settings(attn_implementation="flex_attention")
    for installed in (True, False):
        monkeypatch.setattr("spr.training.prefix_attention.is_flash_attn_2_available", lambda given=installed: given)
        assert loaded_with(flash, CUDA, True, None) == ("flash_attention_2" if installed else "sdpa")
        # Two sequences per answer are transformers' own attention.
        assert loaded_with(flash, CUDA, False, "experts") == "flash_attention_2"
    assert loaded_with(flex, CUDA, True, None) == "sdpa"
    with pytest.raises(ModelError) as caught:
        loaded_with(flex, CUDA, False, "its layers differ")
    assert caught.value.got == "its layers differ"


@pytest.mark.parametrize("attention", ["flash_attention_2", "flex_attention"])
def test_on_a_cpu_both_are_refused(attention, trainable_folder, settings, tmp_path):
    with pytest.raises(ModelError, match="needs a GPU") as caught:
        load_trainee(str(trainable_folder("llava")), settings(attn_implementation=attention), CPU, features=tmp_path)
    assert caught.value.fix == "set training.attn_implementation=sdpa"


@pytest.mark.usefixtures("flash")
def test_the_kernel_is_checked_before_it_is_used(monkeypatch):
    check_kernel(CPU, torch.bfloat16)
    with pytest.raises(ModelError, match="16 bits"):
        check_kernel(CPU, torch.float32)
    monkeypatch.setattr(flash_pieces, "is_flash_attn_2_available", lambda: True)

    def top_left(q, k, v, cu_seqlens_q, cu_seqlens_k, **_):
        # As in flash-attn before 2.1: the first query sees the first key only.
        outputs = []
        for (a, b), (c, d) in zip(
            torch.stack([cu_seqlens_q[:-1], cu_seqlens_q[1:]], 1).tolist(),
            torch.stack([cu_seqlens_k[:-1], cu_seqlens_k[1:]], 1).tolist(),
            strict=True,
        ):
            states = [part.transpose(0, 1) for part in (q[a:b], k[c:d], v[c:d])]
            outputs.append(
                nn.functional.scaled_dot_product_attention(*states, is_causal=True, enable_gqa=True).transpose(0, 1)
            )
        return torch.cat(outputs)

    functions = (None, top_left, None, None, None), (None, None)
    monkeypatch.setattr(flash_pieces, "lazy_import_flash_attention", lambda _: functions)
    with pytest.raises(ModelError, match="wrong result"):
        check_kernel(CPU, torch.bfloat16)


def test_a_batch_without_its_mask_can_be_moved():
    tokens = torch.ones(3, dtype=torch.int64)
    pair = EncodedPair("", tokens, torch.arange(3)[None], tokens, tokens, Features(torch.zeros(0, 8)))
    moved = collate([pair], pad=0, shared=True, dense=False).to(torch.device("meta"))
    assert moved.mask is None
    assert moved.spans == (PairSpan(0, 0, 3, 6, 9),)
