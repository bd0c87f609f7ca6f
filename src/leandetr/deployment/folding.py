"""A detector as a graph of PyTorch's operators for photographs of one shape, with all that no photograph changes computed.

Masks, positions, anchors and what is made of weights alone are constants at one shape: they cost nothing at run time, and an
engine need not know the operators that appear there alone (arange, cumsum, powers in float64).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn

from leandetr.deployment.xnnpack import attribute, multiplies_integers, spell_integers

aten = torch.ops.aten


def folded_graph(model: nn.Module, pixels: Tensor) -> fx.GraphModule:
    """The graph of `model(pixels)`, in evaluation mode, for photographs of that shape."""
    traced = torch.export.export(model, (pixels,), strict=False).module(check_guards=False)
    assert isinstance(traced, fx.GraphModule)
    for node in list(traced.graph.nodes):
        if node.target is aten._assert_tensor_metadata.default:  # held while it was traced; it would keep what it looks at
            traced.graph.erase_node(node)
        elif node.target in IDENTITIES or (node.target is aten.to.dtype and _changes_nothing(*node.args, **node.kwargs)):
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)  # a dropout counts as changing the world
        elif node.target in SPELLED_OUT:
            SPELLED_OUT[node.target](traced.graph, node)
    traced.graph.eliminate_dead_code()
    changed = _changed_in_place(traced.graph.nodes)
    _fold(traced, changed)
    _drop_masks(traced)
    traced.graph.eliminate_dead_code()
    spell_integers(traced, changed)
    return fx.GraphModule(traced, traced.graph).eval()  # without what nothing reads; an exported module refuses `eval`


def _fold(module: fx.GraphModule, changed: set[fx.Node]) -> None:
    """Replace every tensor that is made of constants alone, and that something else reads, by its value; but for weights that
    engines multiply as integers. changed: what operators write into."""
    known: dict[fx.Node, Any] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr" and node not in changed:
            known[node] = attribute(module, node)
        elif node.target in OF_A_SHAPE and node not in changed:
            known[node] = node.target(*fx.map_arg(node.args, _zeros_like), **node.kwargs)
        elif _is_function(node) and node not in changed and all(each in known for each in node.all_input_nodes):
            args, kwargs = fx.map_arg((node.args, node.kwargs), known.__getitem__)
            known[node] = node.target(*args, **kwargs)
    for weight in [node for node in known if multiplies_integers(node, known)]:
        del known[weight]
    computed = [node for node in known if node.op != "get_attr" and isinstance(known[node], Tensor)]
    for number, node in enumerate(computed):
        readers = [user for user in node.users if user not in known]
        if not readers:
            continue
        name = f"constant_{number}"
        module.register_buffer(name, known[node].detach().clone(memory_format=torch.contiguous_format))
        with module.graph.inserting_before(node):
            constant = module.graph.get_attr(name)
        constant.meta = dict(node.meta)
        for reader in readers:
            reader.replace_input_with(node, constant)


def _zeros_like(node: fx.Node) -> Any:
    value = node.meta["val"]
    return torch.zeros(value.shape, dtype=value.dtype) if isinstance(value, Tensor) else value


def _drop_masks(module: fx.GraphModule) -> None:
    """Attention with a constant mask that hides nothing is attention without one."""
    for node in module.graph.nodes:
        if node.target is aten.scaled_dot_product_attention.default:
            mask = node.args[3] if len(node.args) > 3 else None
            if isinstance(mask, fx.Node) and mask.op == "get_attr" and _hides_nothing(attribute(module, mask)):
                node.update_arg(3, None)


def _hides_nothing(mask: Tensor) -> bool:
    return bool(mask.all() if mask.dtype == torch.bool else not mask.any())


def _changes_nothing(x: fx.Node, dtype: torch.dtype, non_blocking: bool = False, copy: bool = False, **_layout: Any) -> bool:
    """Of `x.to(dtype)`: a copy is made to be written into."""
    return x.meta["val"].dtype == dtype and not copy


def _is_function(node: fx.Node) -> bool:
    """Whether a node computes the same whenever it is given the same."""
    tags = getattr(node.target, "tags", ())  # Python's own functions have none
    return node.op == "call_function" and torch.Tag.nondeterministic_seeded not in tags


def _changed_in_place(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """What operators write into, and what that may be a view of."""
    changed: set[fx.Node] = set()
    for node in nodes:
        schema = getattr(node.target, "_schema", None)
        waiting = [node] if schema is not None and schema.is_mutable else []
        while waiting:
            found = waiting.pop()
            if found not in changed:
                changed.add(found)
                waiting += found.all_input_nodes[:1]
    return changed


def _exp2(graph: fx.Graph, node: fx.Node) -> None:
    """2^x = e^(x ln 2)."""
    with graph.inserting_before(node):
        scaled = graph.call_function(aten.mul.Scalar, (node.args[0], math.log(2)))
        power = graph.call_function(aten.exp.default, (scaled,))
    node.replace_all_uses_with(power)


def _product_with_a_vector(graph: fx.Graph, node: fx.Node) -> None:
    """x w = x [w]^T without its last axis."""
    x, weight, *bias = node.all_input_nodes
    if weight.meta["val"].dim() == 1 and not bias:
        with graph.inserting_before(node):
            matrix = graph.call_function(aten.unsqueeze.default, (weight, 0))
            product = graph.call_function(aten.linear.default, (x, matrix))
            squeezed = graph.call_function(aten.squeeze.dim, (product, -1))
        node.replace_all_uses_with(squeezed)


#: what does nothing in evaluation mode; between a grid and a product it would keep integers from being multiplied
IDENTITIES = (aten.dropout.default, aten.detach.default, aten.alias.default)

#: operators that look at no value of their tensor
OF_A_SHAPE = (
    *(aten.new_ones.default, aten.new_zeros.default, aten.new_full.default),
    *(aten.ones_like.default, aten.zeros_like.default, aten.full_like.default),
)

#: operators that an engine lacks, by others that all have
SPELLED_OUT: dict[Any, Callable[[fx.Graph, fx.Node], None]] = {
    aten.exp2.default: _exp2,
    aten.linear.default: _product_with_a_vector,
}
