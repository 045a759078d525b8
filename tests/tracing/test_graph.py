"""What a traced graph says: names, roles, ties, dead weights, reasons, permutations."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn
from zoo import ALL, prepared
from zoo.nets import Dead, Perceptron, Shared
from zoo.sequences import (
    FusedAttention,
    TiedLanguageModel,
    TiedTranspose,
    TorchAttention,
    split_timm,
)

from hetmerge.errors import InputError, TraceError
from hetmerge.tracing import Concat, Leaf, Product, SpaceGraph, trace
from hetmerge.tracing.expr import leaves, size

CASES = {case.name: case for case in ALL}


@functools.cache
def graph_of(name: str) -> SpaceGraph:
    args, kwargs = CASES[name].inputs(0)
    return trace(prepared(CASES[name]), args, kwargs)


def of_tensor(graph: SpaceGraph, tensor: str) -> set[int]:
    return {dim for name, dim in graph.consumed if name == tensor}


# -- structure


def test_names_are_unique_and_say_which_tensor_produces_the_space() -> None:
    graph = graph_of("llama")
    names = [space.name for space in graph.spaces]
    assert len(set(names)) == len(names)
    assert {"model.embed_tokens", "model.embed_tokens.rows", "lm_head"} <= set(names)
    assert {"model.layers.1.mlp.gate_proj", "model.layers.1.self_attn.q_proj:0"} <= set(names)
    assert [space.name for space in graph_of.__wrapped__("llama").spaces] == names


def test_expressions_of_grouped_query_attention() -> None:
    graph = graph_of("llama")
    prefix = "model.layers.0.self_attn"
    query, key = (
        graph.tensors[f"{prefix}.q_proj.weight"][0],
        graph.tensors[f"{prefix}.k_proj.weight"][0],
    )
    assert isinstance(query, Product)
    assert isinstance(key, Product)
    group, shared, rotary = query.parts
    assert isinstance(rotary, Concat)
    assert rotary.parts[0] == rotary.parts[1]  # rotate_half: both halves are one ordering
    assert key.parts == (group, rotary)
    assert isinstance(group, Leaf)
    assert isinstance(shared, Leaf)
    assert graph.spaces[shared.space].structure == (group.space,)


def test_fused_gates_are_one_space_twice() -> None:
    graph = graph_of("phi3")
    gates = graph.tensors["model.layers.0.mlp.gate_up_proj.weight"][0]
    assert isinstance(gates, Concat)
    assert gates.parts[0] == gates.parts[1]


def test_every_dimension_of_every_used_tensor_has_its_size() -> None:
    for name in ("resnet_pad", "attention_torch", "lstm", "gpt2"):
        model, graph = prepared(CASES[name]), graph_of(name)
        state = model.state_dict()
        for tensor, dims in graph.tensors.items():
            assert [size(dim) for dim in dims] == list(state[tensor].shape)


def test_occurrences_lead_to_their_leaf() -> None:
    graph = graph_of("resnet_pad")
    for space in graph.spaces:
        for place in space.where:
            expr = graph.tensors[place.tensor][place.dim]
            for step in place.path:
                assert not isinstance(expr, Leaf)
                expr = expr.parts[step]
            assert expr == Leaf(space.index, space.size)


def test_values_cover_every_parameter_dependent_node() -> None:
    graph = graph_of("perceptron")
    calls = [node.name for node in graph.program.graph.nodes if node.op == "call_function"]
    assert list(graph.values) == calls
    hidden = graph.space("a")
    assert graph.values["layer_norm"][1] == Leaf(hidden.index, 32)
    assert graph.values["layer_norm"][0] == Leaf(-1, 2)


def test_the_program_runs_and_gives_the_outputs_of_the_model() -> None:
    for name in ("perceptron", "assigned", "gpt2"):
        case = CASES[name]
        model, (args, kwargs) = prepared(case), case.inputs(0)
        graph = trace(model, args, kwargs)
        with torch.no_grad():
            expected = model(*args, **kwargs)
            found = graph.program.module()(*args, **kwargs)
        first = expected if isinstance(expected, Tensor) else expected.logits
        assert torch.allclose(found if isinstance(found, Tensor) else found.logits, first)


@pytest.mark.parametrize(
    "name", ["perceptron", "resnet_pad_inplace", "attention_torch", "lstm", "gpt2", "llama", "vit"]
)
def test_tracing_on_the_meta_device_finds_the_same(name: str) -> None:
    case, real = CASES[name], graph_of(name)
    args, kwargs = case.inputs(0)
    with torch.device("meta"):
        model = case.build()
    meta = trace(model.to(case.dtype), args, kwargs)
    for field in ("spaces", "tensors", "consumed", "mixing", "outputs", "aliases"):
        assert getattr(meta, field) == getattr(real, field), field
    # attention kernels of the real device may not need a contiguous copy first
    shared = meta.values.keys() & real.values.keys()
    assert all(meta.values[name] == real.values[name] for name in shared)
    assert all(name.startswith("contiguous") for name in meta.values.keys() ^ real.values.keys())


# -- roles


def test_consumed_dimensions_of_linear_and_convolution() -> None:
    graph = graph_of("resnet_conv")
    assert of_tensor(graph, "stem.weight") == {1}
    assert of_tensor(graph, "head.weight") == {1}
    assert of_tensor(graph, "norm.weight") == set()
    assert of_tensor(graph_of("unet_transposed"), "up.weight") == {0}


def test_consumed_dimensions_of_fused_projections() -> None:
    for module in (TorchAttention(), FusedAttention(split_timm)):
        graph = trace(module, torch.randn(2, 8, 20))
        for tensor, dims in graph.tensors.items():
            weight = len(dims) == 2 and "norm" not in tensor
            assert of_tensor(graph, tensor) == ({1} if weight else set()), tensor


def test_consumed_dimensions_of_recurrent_and_expert_weights() -> None:
    lstm = graph_of("lstm")
    assert of_tensor(lstm, "layer.weight_ih_l0") == {1}
    assert of_tensor(lstm, "layer.weight_hh_l1") == {1}
    dense = graph_of("experts_dense")
    assert of_tensor(dense, "up") == {2}
    routed = graph_of("mixtral")
    assert of_tensor(routed, "model.layers.0.mlp.experts.gate_up_proj") == {2}
    assert of_tensor(routed, "model.layers.0.mlp.experts.down_proj") == {2}


def test_consumed_dimensions_of_transposed_weights_and_tables() -> None:
    graph = graph_of("gpt2")
    assert of_tensor(graph, "transformer.h.0.attn.c_attn.weight") == {0}
    assert of_tensor(graph, "transformer.wte.weight") == set()  # first used as a table
    tied = trace(TiedTranspose(), torch.randn(2, 8, 20))
    assert of_tensor(tied, "w") == {0}  # first use: x @ w
    assert of_tensor(tied, "v") == {0}


def test_weights_made_of_weights_are_tracked() -> None:
    graph = graph_of("op_low_rank")
    assert of_tensor(graph, "w") == {0}
    assert of_tensor(graph, "u") == {0}
    assert of_tensor(graph, "v") == set()
    normed = graph_of("weight_norm")
    assert of_tensor(normed, "a.parametrizations.weight.original1") == {1}


def test_mixing_names_norms_and_not_batch_norm() -> None:
    assert graph_of("perceptron").mixing == ("layer_norm",)
    assert graph_of("resnet_conv").mixing == ()
    assert graph_of("vgg").mixing == ()
    assert len(graph_of("llama").mixing) == 5  # two norms per layer and the last
    assert "group_norm" in graph_of("group_norm_squeeze").mixing


# -- ties, dead weights, overlaps


def test_tied_embeddings_are_one_tensor() -> None:
    ids = torch.randint(0, 40, (2, 8))
    graph = trace(TiedLanguageModel(), ids)
    assert graph.aliases == {"head.weight": "embed.weight"}
    assert "head.weight" not in graph.tensors
    rows, features = graph.tensors["embed.weight"]
    assert not graph.spaces[next(leaves(rows)).space].free
    assert graph.spaces[next(leaves(features)).space].free


def test_permuting_reaches_every_name_of_a_tied_tensor() -> None:
    model = TiedLanguageModel()
    graph = trace(model, torch.randint(0, 40, (2, 8)))
    hidden = graph.space("embed")
    new = graph.permute(model.state_dict(), {hidden.index: torch.arange(16).roll(1)})
    assert new["head.weight"] is new["embed.weight"]
    assert torch.equal(new["head.weight"], model.embed.weight.roll(1, 1))


def test_one_module_under_two_names() -> None:
    graph = trace(Shared(), torch.randn(2, 8, 20))
    assert graph.aliases == {"again.weight": "block.weight", "again.bias": "block.bias"}


def test_parameters_that_share_memory_in_part_are_pinned() -> None:
    model = Perceptron()
    memory = torch.randn(40)
    model.a.bias = nn.Parameter(memory[:32])
    model.norm.bias = nn.Parameter(memory[8:])
    space = trace(model, torch.randn(2, 20)).space("a")
    assert not space.free
    assert any("shares memory with norm.bias" in reason for reason in space.pins)


def test_dead_parameters_are_listed_and_left_out() -> None:
    graph = trace(Dead(), torch.randn(2, 20))
    assert graph.dead == ("unused.weight", "unused.bias")
    assert "unused.weight" not in graph.tensors
    assert len(graph.outputs) == 2
    assert "unused.weight" in graph.explain()


def test_rows_that_these_inputs_do_not_reach_are_pinned() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.place = nn.Linear(20, 32), nn.Parameter(torch.randn(16, 32))

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.a(x) + self.place[: x.shape[1]]).sum(-1)

    graph = trace(Positions(), torch.randn(2, 8, 20))
    later = [space for space in graph.spaces if "not read for these inputs" in space.pins]
    assert [space.size for space in later] == [8]


# -- reasons and access


def test_explain_gives_counts_reasons_and_structure() -> None:
    text = graph_of("llama").explain()
    assert text.startswith("LlamaForCausalLM: 13 spaces, 9 free, 4 pinned")
    assert "rows are chosen by index (embedding in model.embed_tokens)" in text
    assert "the output, axis 2" in text
    assert "a constant varies along it" in text
    assert "separately per index of model.layers.0.self_attn.q_proj:0" in text


def test_an_operator_without_a_rule_is_named_with_its_reason() -> None:
    graph = graph_of("op_fft")
    assert graph.unknown == {"fft_rfft": 1}
    assert "no rule for fft_rfft" in graph.explain()
    assert not graph.space("a").free


def test_an_unknown_name_lists_the_nearest() -> None:
    graph = graph_of("perceptron")
    assert graph.space(0) is graph.spaces[0]
    with pytest.raises(InputError, match=r"no space named 'a\.inn'; nearest: a\.in"):
        graph.space("a.inn")
    with pytest.raises(InputError, match="no space 99"):
        graph.space(99)


# -- permutations


def test_permute_is_new_equals_old_at_index() -> None:
    model = Perceptron()
    graph = trace(model, torch.randn(2, 20))
    order = torch.randperm(32)
    state = model.state_dict()
    new = graph.permute(state, {graph.space("a").index: order})
    assert torch.equal(new["a.weight"], state["a.weight"][order])
    assert torch.equal(new["norm.bias"], state["norm.bias"][order])
    assert torch.equal(new["b.weight"], state["b.weight"][:, order])
    assert new["c.weight"] is state["c.weight"]


def test_permute_per_head() -> None:
    model = FusedAttention(split_timm)
    graph = trace(model, torch.randn(2, 8, 20))
    value = graph.spaces[next(s for s in of_output(graph) if graph.spaces[s].structure)]
    orders = torch.stack([torch.arange(8).roll(i) for i in range(4)])
    state = model.state_dict()
    new = graph.permute(state, {value.index: orders})
    heads = state["out.weight"].view(32, 4, 8)
    expected = torch.stack([heads[:, i, orders[i]] for i in range(4)], 1).reshape(32, 32)
    assert torch.equal(new["out.weight"], expected)


def of_output(graph: SpaceGraph) -> list[int]:
    return [leaf.space for leaf in leaves(graph.tensors["out.weight"][1])]


def test_permute_refuses_what_is_not_a_permutation() -> None:
    model = Perceptron()
    graph = trace(model, torch.randn(2, 20))
    state, space = model.state_dict(), graph.space("a").index
    with pytest.raises(InputError, match=r"permutation of a: shape \[31\], needs \[32\]"):
        graph.permute(state, {space: torch.arange(31)})
    with pytest.raises(InputError, match="permutation of a is not a permutation"):
        graph.permute(state, {space: torch.zeros(32, dtype=torch.long)})
    with pytest.raises(InputError, match="no space 50"):
        graph.permute(state, {50: torch.arange(3)})
    with pytest.raises(InputError, match=r"no tensor 'norm\.bias'"):
        graph.permute(
            {k: v for k, v in state.items() if k != "norm.bias"}, {space: torch.arange(32)}
        )
    state["norm.bias"] = torch.zeros(7)
    with pytest.raises(InputError, match=r"norm\.bias has shape \[7\], needs \[32\]"):
        graph.permute(state, {space: torch.arange(32)})


# -- inputs and side effects


def test_inputs_may_be_a_tensor_a_tuple_a_list_or_a_dict() -> None:
    model, x = Perceptron(), torch.randn(2, 20)
    graphs = [trace(model, x), trace(model, (x,)), trace(model, [x]), trace(model, {"x": x}),
              trace(model, kwargs={"x": x})]  # fmt: skip
    assert len({graph.spaces for graph in graphs}) == 1


def test_bad_inputs_are_one_clear_line() -> None:
    model = Perceptron()
    with pytest.raises(TraceError, match=r"^Perceptron cannot be exported .*\[2, 19\].*$"):
        trace(model, torch.randn(2, 19))
    with pytest.raises(TraceError, match=r"must be a torch\.nn\.Module, got str"):
        trace("model", torch.randn(2, 20))  # type: ignore[arg-type]
    with pytest.raises(TraceError, match="a tensor, a tuple, a list or a dict, got int"):
        trace(model, 3)
    with pytest.raises(TraceError, match="give one"):
        trace(model, {"x": torch.randn(2, 20)}, {"x": torch.randn(2, 20)})
    with pytest.raises(TraceError, match="keyword arguments must be a dict, got list"):
        trace(model, (), [1])  # type: ignore[arg-type]


def test_shapes_that_depend_on_data_are_refused() -> None:
    class Chosen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(20, 32)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return y[y > 0]

    with pytest.raises(TraceError, match="depends on the data"):
        trace(Chosen(), torch.randn(2, 20))


def test_a_model_without_tensors_to_return_is_refused() -> None:
    class Nothing(nn.Linear):
        def forward(self, x: Tensor) -> int:  # type: ignore[override]
            return 3

    with pytest.raises(TraceError, match="returns no tensor"):
        trace(Nothing(2, 2), torch.randn(2, 2))


def test_the_model_is_left_as_it_was() -> None:
    case = CASES["gpt2"]
    model = case.build().train()
    model.transformer.h[0].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    args, kwargs = case.inputs(0)
    graph = trace(model, args, kwargs)
    graph.verify(model)
    assert [module.training for module in model.modules()] == modes
    assert model.config.use_cache is True
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    model.eval()
    assert torch.isfinite(model(**kwargs).logits).all()


def test_recurrent_models_still_run_after_tracing() -> None:
    model = nn.LSTM(20, 8, batch_first=True)
    x = torch.randn(2, 5, 20)
    with torch.no_grad():
        before = model(x)[0]
        trace(model, x)
        assert torch.equal(model(x)[0], before)
    assert all(isinstance(weight, nn.Parameter) for weight in model._flat_weights)
