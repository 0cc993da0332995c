"""A pack as one sequence of tokens, as CUDA computes it; here without the kernels, whose masks are the same."""

from __future__ import annotations

import pytest
import torch
from packs import Pack, mixed_samples, random_pack
from reference_vectors import DESCRIPTION, relative
from torch import Tensor, nn

from model import NextDiT
from model import attention as attention_module
from model import transformer as transformer_module
from model.inputs import InputError
from model.layout import BLOCK, TokenLayout, batch_layout, packed_layout


@pytest.fixture(autouse=True)
def gradients_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention has its gradient for any device, and refuses it on a CPU for want of a kernel."""
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda query, key, value: None)


@pytest.fixture
def by_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformer_module, "_in_one_kernel", lambda device: True)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """The graphs that blocks are compiled to from here on, by the parts of the compiler before code generation."""
    from torch._dynamo.backends.debugging import aot_eager

    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        graphs.append(graph)
        return aot_eager(graph, inputs)

    torch._dynamo.reset()
    compiled = torch.compile(transformer_module.Block.compute, fullgraph=True, backend=backend)
    monkeypatch.setattr(transformer_module, "_compiled_block", lambda: compiled)
    return graphs


def model_like(transformer: NextDiT, soft_capping: bool | None = None) -> NextDiT:
    model = NextDiT(**DESCRIPTION["transformer"], soft_capping=soft_capping)
    model.load_state_dict(transformer.state_dict())
    return model


def outputs_and_gradients(model: nn.Module, pack: Pack) -> tuple[list[Tensor], Tensor]:
    model.zero_grad()
    outputs = model.forward_packed(*pack)
    sum(output.square().mean() for output in outputs).backward()
    return outputs, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.slow
@pytest.mark.parametrize("soft_capping", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_token_layout_equals_group_layout_with_gradients(
    compiled: bool, soft_capping: bool, transformer: NextDiT, monkeypatch: pytest.MonkeyPatch, graphs: list[object]
) -> None:
    model = model_like(transformer, soft_capping)
    for pack in (mixed_samples(), random_pack(3)):
        expected, expected_gradients = outputs_and_gradients(model, pack)
        with monkeypatch.context() as patch:
            patch.setattr(transformer_module, "_in_one_kernel", lambda device: True)
            if compiled:
                model.compile_blocks()
            outputs, gradients = outputs_and_gradients(model, pack)
        for one, other in zip(outputs, expected, strict=True):
            assert relative(one, other) < 1e-5
        assert relative(gradients, expected_gradients) < 1e-5
    assert bool(graphs) == compiled


def test_token_layout_serves_padded_texts_and_levels_of_tokens(
    transformer: NextDiT, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    x, text = torch.randn(3, 2, 16, 8, 12), torch.randn(3, 6, 32)
    mask = torch.arange(6).expand(3, 6) < torch.tensor([[6], [2], [4]])
    for t in (torch.tensor([5.0, 900.0, 3.0]), torch.rand(3, 2) * 1000, (torch.rand(x.shape) * 1000)):
        with torch.no_grad(), monkeypatch.context() as patch:
            expected = transformer(x, t, text, mask)
            patch.setattr(transformer_module, "_in_one_kernel", lambda device: True)
            assert relative(transformer(x, t, text, mask), expected) < 1e-5


@pytest.mark.usefixtures("by_tokens")
@pytest.mark.slow
def test_packs_of_any_shapes_share_at_most_four_graphs(transformer: NextDiT, graphs: list[object]) -> None:
    model = model_like(transformer)
    model.compile_blocks()
    model.enable_gradient_checkpointing()
    for seed in range(100):  # of 200 packs most are small: their shapes and number of samples differ all the same
        most = 7 if seed < 10 else 3
        model.train()
        outputs_and_gradients(model, random_pack(seed, most))
        with torch.no_grad():
            model.eval().forward_packed(*random_pack(100 + seed, most))
    assert 2 <= len(graphs) <= 4


@pytest.mark.usefixtures("by_tokens")
@pytest.mark.slow
def test_blocks_with_an_adapter_share_their_graph(transformer: NextDiT, graphs: list[object]) -> None:
    """But the first block, whose input has no gradient."""
    from training.lora import LoraConfig, add_adapter

    model = model_like(transformer)
    add_adapter(model, LoraConfig(rank=2, alpha=3), half=False)
    model.compile_blocks()
    for seed in range(2):
        outputs_and_gradients(model, random_pack(seed))
    assert len(graphs) == 2
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (".lora_" in name), name


def test_diffusers_compiles_all_blocks_to_one_graph(transformer: NextDiT, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    model = model_like(transformer)
    packs = [mixed_samples(), random_pack(3), random_pack(4)]
    with torch.no_grad():
        expected = [one for pack in packs for one in model.forward_packed(*pack)]
        model.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
        monkeypatch.setattr(transformer_module, "_in_one_kernel", lambda device: True)
        outputs = [one for pack in packs for one in model.forward_packed(*pack)]
    for one, other in zip(outputs, expected, strict=True):
        assert relative(one, other) < 1e-5
    assert counters["stats"]["unique_graphs"] == 1


def test_block_tables_cover_every_pair_of_tokens_of_one_sample() -> None:
    device = torch.device("cpu")
    layouts = [
        packed_layout([(2, 8, 8)] * 3 + [(1, 12, 20), (1, 3, 5)], [3, 200, 1, 300, 7], 6, device),
        batch_layout(3, (1, 16, 16), torch.arange(300).expand(3, 300) < 260, False, 6, 1.0, 1.0),
    ]
    for layout in layouts:
        tokens = TokenLayout.of(layout)
        for blocks, keys in ((tokens.within, tokens.sample_of_token), (tokens.to_text, tokens.sample_of_text)):
            attends = tokens.sample_of_token[:, None] == keys
            by_block = attends.unflatten(0, (-1, BLOCK)).unflatten(2, (-1, BLOCK)).float().mean((1, 3))
            part, whole = (dense(*blocks.tables[i : i + 2]) for i in (0, 2))
            assert torch.equal(whole, by_block == 1)
            assert torch.equal(part, (by_block > 0) & (by_block < 1))
            assert torch.equal(dense(*blocks.tables[4:6]), part.mT)
            assert torch.equal(dense(*blocks.tables[6:8]), whole.mT)


def dense(count: Tensor, places: Tensor) -> Tensor:
    """What a table of blocks says, as (a, b) booleans."""
    count, places = count[0, 0], places[0, 0].long()
    is_listed = torch.arange(places.shape[1]) < count[:, None]
    return torch.zeros(places.shape, dtype=torch.bool).scatter(1, places, is_listed)


def test_attention_on_a_gpu_without_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnGpu:
        is_cuda = True

    with pytest.raises(InputError, match="TORCHDYNAMO_DISABLE"):
        attention_module._attend_tokens(OnGpu(), *[None] * 6)
