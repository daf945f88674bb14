"""Rules: tensors reshaped, cut, joined, indexed and made."""

from __future__ import annotations

from typing import Any

from weights_convert.graph.registry import PADDLE_DTYPES, Call, Layer, is_size, layer, literal, rule, value_of

import torch

END = 2**63 - 1


def _target_shape(call: Call, sizes: list[Any]) -> str:
    """A shape, with -1 in the place of its only unknown size."""
    unknown = [index for index, size in enumerate(sizes) if is_size(size) or size == -1]
    shown = [call.show(size, "size") for size in sizes]
    if len(unknown) == 1:
        shown[unknown[0]] = "-1"
    return f"[{', '.join(shown)}]"


@rule("aten.view.default", "aten.reshape.default", "aten._unsafe_view.default", "aten._reshape_copy.default")
def reshape(call: Call) -> str:
    """The same values in another shape, last axis fastest; -1 is what is left over."""
    name = "size" if "size" in call.arguments else "shape"
    return f"{call.x()}.reshape({_target_shape(call, list(call[name]))})"


@rule("aten.reshape_as.default", "aten.view_as.default")
def reshape_as(call: Call) -> str:
    """The same values in the shape of another tensor."""
    return f"{call.x()}.reshape([{', '.join(call.size_of(size) for size in call.out.shape)}])"


@rule("aten.unflatten.int")
def unflatten(call: Call) -> str:
    """One axis split into several."""
    shape = list(call.out.shape)
    dim = call["dim"] % call.val().dim()
    inner = _target_shape(call, list(call["sizes"]))
    return f"paddle.unflatten({call.x()}, {dim}, {inner})" if shape else ""


@rule("aten.flatten.using_ints")
def flatten(call: Call) -> str:
    """Axes start_dim to end_dim as one; a tensor without axes gets one."""
    rank = call.val().dim()
    start, end = call["start_dim"] % max(rank, 1), call["end_dim"] % max(rank, 1)
    if rank == 0:
        return f"{call.x()}.reshape([1])"
    return f"{call.x()}.flatten({start})" if end == rank - 1 else f"{call.x()}.flatten({start}, {end})"


@layer("aten.flatten.using_ints")
def flatten_layer(call: Call) -> Layer | None:
    """nn.Flatten."""
    rank = call.val().dim()
    start, end = call["start_dim"] % max(rank, 1), call["end_dim"] % max(rank, 1)
    return Layer("nn.Flatten()" if (start, end) == (1, rank - 1) else f"nn.Flatten({start}, {end})")


@rule("aten.permute.default")
def permute(call: Call) -> str:
    """Axes in another order."""
    rank = call.val().dim()
    return f"{call.x()}.transpose({literal([dim % rank for dim in call['dims']], 'order')})"


@rule("aten.transpose.int", "aten.swapaxes.default")
def transpose(call: Call) -> str:
    """Two axes exchanged; Paddle's transpose wants the whole order."""
    rank, names = call.val().dim(), ("dim0", "dim1") if "dim0" in call.arguments else ("axis0", "axis1")
    order = list(range(rank))
    a, b = (call[name] % rank for name in names)
    order[a], order[b] = order[b], order[a]
    return f"{call.x()}.transpose({literal(order, 'order')})"


@rule("aten.t.default", "aten.numpy_T.default", "aten.mT.default")
def matrix_transpose(call: Call) -> str:
    """A matrix mirrored (mT: each of a stack)."""
    if call.val().dim() == 2:
        return f"{call.x()}.T"
    rank = call.val().dim()
    order = list(range(rank - 2)) + [rank - 1, rank - 2] if "mT" in call.name else list(range(rank))[::-1]
    return f"{call.x()}.transpose({literal(order, 'order')})"


@rule("aten.movedim.int", "aten.movedim.intlist", "aten.moveaxis.int")
def movedim(call: Call) -> str:
    """Axes moved to other places, the rest in their order."""
    return f"paddle.moveaxis({call.x()}, {call.x('source')}, {call.x('destination')})"


@rule("aten.squeeze.dim", "aten.squeeze.dims", "aten.squeeze.default")
def squeeze(call: Call) -> str:
    """Axes of length 1 left out, among those named; others stay."""
    shape, rank = call.val().shape, call.val().dim()
    dims = call.arguments.get("dim", list(range(rank)))
    dims = [dim % rank for dim in (dims if isinstance(dims, list | tuple) else [dims])]
    gone = [dim for dim in dims if isinstance(shape[dim], int) and shape[dim] == 1]
    return f"{call.x()}.squeeze({literal(gone[0] if len(gone) == 1 else gone, 'axis')})" if gone else call.x()


@rule("aten.unsqueeze.default")
def unsqueeze(call: Call) -> str:
    """An axis of length 1 at a place; -1 is behind the last."""
    return f"{call.x()}.unsqueeze({literal(call['dim'] % (call.val().dim() + 1), 'axis')})"


@rule("aten.expand.default", "aten.expand_as.default", "aten.broadcast_to.default")
def expand(call: Call) -> str:
    """Axes of length 1 repeated; -1 keeps an axis."""
    if call.name == "aten.expand_as.default":
        return f"{call.x()}.expand([{', '.join(call.size_of(size) for size in call.out.shape)}])"
    sizes = list(call["size"])
    lead = len(sizes) - call.val().dim()
    old = [None] * lead + list(call.val().shape)
    shown = []
    for index, size in enumerate(sizes):
        kept = index >= lead and (size == -1 or old[index] == call.out.shape[index])
        shown.append("-1" if kept else call.show(size, "size"))
    return f"{call.x()}.expand([{', '.join(shown)}])"


@rule("aten.repeat.default", "aten.tile.default")
def repeat(call: Call) -> str:
    """Copies along each axis."""
    name = "repeats" if "repeats" in call.arguments else "dims"
    return f"{call.x()}.tile([{', '.join(call.show(count, 'repeats') for count in call[name])}])"


@rule("aten.repeat_interleave.self_int")
def repeat_interleave(call: Call) -> str:
    """Each value repeated along an axis; without an axis the flat tensor."""
    axis = "" if call["dim"] is None else f", axis={call.x('dim')}"
    return f"paddle.repeat_interleave({call.x()}, {call.x('repeats')}{axis})"


@rule("aten.cat.default", "aten.concat.default")
def cat(call: Call) -> str:
    """Tensors one behind the other along an axis, in the promoted type; empty ones of one axis do not count."""
    tensors = []
    for node in call["tensors"]:
        value = value_of(node)
        if value.dim() == 1 and value.shape[0] == 0 and call.out.dim() != 1:
            continue
        cast = f'.astype("{call.dtype()}")' if value.dtype != call.out.dtype else ""
        tensors.append(call.show(node) + cast)
    axis = call["dim"] % call.out.dim()
    return f"paddle.concat([{', '.join(tensors)}], axis={literal(axis, 'axis')})"


@rule("aten.stack.default")
def stack(call: Call) -> str:
    """Tensors one behind the other along a new axis."""
    return f"paddle.stack([{', '.join(call.xs('tensors'))}], axis={literal(call['dim'] % call.out.dim(), 'axis')})"


def _split_at(call: Call, sizes: list[Any]) -> str:
    axis = call["dim"] % call.val().dim()
    shown = [call.show(size, "size") if not isinstance(size, torch.SymInt) else call.size_of(size) for size in sizes]
    return f"paddle.split({call.x()}, [{', '.join(shown)}], axis={literal(axis, 'axis')})"


@rule("aten.split.Tensor", "aten.chunk.default", "aten.tensor_split.sections")
def split(call: Call) -> str:
    """Pieces of one size along an axis, the last shorter where it does not divide; Paddle's `split` wants it to."""
    axis = call["dim"] % call.val().dim()
    sizes = [piece.shape[axis] for piece in call.out]
    if len(sizes) == 1:
        return f"[{call.x()}]"
    if all(size == sizes[0] for size in sizes):
        return f"paddle.split({call.x()}, {literal(len(sizes), 'pieces')}, axis={literal(axis, 'axis')})"
    return _split_at(call, sizes)


@rule("aten.split_with_sizes.default", "aten.split.sizes")
def split_with_sizes(call: Call) -> str:
    """Pieces of given sizes along an axis."""
    return _split_at(call, list(call["split_sizes"] if "split_sizes" in call.arguments else call["split_size"]))


@rule("aten.unbind.int")
def unbind(call: Call) -> str:
    """The slices along an axis, without it."""
    return f"paddle.unbind({call.x()}, axis={literal(call['dim'] % call.val().dim(), 'axis')})"


def _colons(dim: int) -> str:
    return ":, " * dim


@rule("aten.slice.Tensor")
def slice_(call: Call) -> str:
    """Every step-th from start to end, negative ones counted from behind, clipped to the axis."""
    start, end, step = call["start"], call["end"], call["step"]
    if start in (0, None) and (end is None or (isinstance(end, int) and end >= END)) and step == 1:
        return call.x()
    first = "" if start in (0, None) else call.show(start, "start")
    last = "" if end is None or (isinstance(end, int) and end >= END) else call.show(end, "end")
    stride = "" if step == 1 else f":{call.show(step, 'step')}"
    dim = call["dim"] % call.val().dim()
    return f"{call.x()}[{_colons(dim)}{first}:{last}{stride}]"


@rule("aten.select.int")
def select(call: Call) -> str:
    """One slice along an axis, without it."""
    dim = call["dim"] % call.val().dim()
    return f"{call.x()}[{_colons(dim)}{call.show(call['index'], 'index')}]"


@rule("aten.narrow.default")
def narrow(call: Call) -> str:
    """`length` values from `start` on."""
    dim, start, length = call["dim"] % call.val().dim(), call["start"], call["length"]
    if is_size(start) or is_size(length):
        raise call.refuse("with sizes that are not known")
    return f"{call.x()}[{_colons(dim)}{literal(start, 'start')}:{literal(start + length, 'end')}]"


@rule("aten.slice_scatter.default", "aten.select_scatter.default")
def scatter_slice(call: Call) -> str:
    """A copy with a slice along an axis replaced."""
    dim, rank = call["dim"] % call.val().dim(), call.val().dim()
    if "select" in call.name:
        where = call.show(call["index"], "index")
    else:
        first = "" if call["start"] in (0, None) else call.show(call["start"], "start")
        last = "" if call["end"] is None or call["end"] == END else call.show(call["end"], "end")
        where = f"{first}:{last}" + ("" if call["step"] == 1 else f":{call.show(call['step'], 'step')}")
        if where == ":":
            return f"{call.x('src')}.expand({call.x()}.shape)"
    key = ", ".join(["slice(None)"] * dim) + (", " if dim else "")
    if ":" in where:
        parts = [part or "None" for part in where.split(":")]
        where = f"slice({', '.join(parts)})"
    return f"{call.helper('with_slice')}({call.x()}, ({key}{where},), {call.x('src')})" if rank else call.x("src")


@rule("aten.roll.default")
def roll(call: Call) -> str:
    """Values moved along axes, round the end."""
    axes = f", axis={call.x('dims')}" if call["dims"] else ""
    shifts = ", ".join(call.show(shift, "shift") for shift in call["shifts"])
    return f"paddle.roll({call.x()}, [{shifts}]{axes})"


@rule("aten.flip.default")
def flip(call: Call) -> str:
    """Axes backwards."""
    return f"paddle.flip({call.x()}, axis={call.x('dims')})"


@rule("aten.index.Tensor")
def index(call: Call) -> str:
    """Picked by tensors of indices, one per axis, broadcast among each other; None keeps an axis."""
    parts = [":" if item is None else call.show(item) for item in call["indices"]]
    seen = [position for position, part in enumerate(parts) if part != ":"]
    if seen != list(range(seen[0], seen[-1] + 1)):
        raise call.refuse("by tensors of axes that are not neighbours")
    return f"{call.x()}[{', '.join(parts)}]"


@rule("aten.index_select.default")
def index_select(call: Call) -> str:
    """Slices along an axis, by a list of indices."""
    return f"paddle.index_select({call.x()}, {call.x('index')}, axis={literal(call['dim'] % call.val().dim(), 'axis')})"


@rule("aten.gather.default")
def gather(call: Call) -> str:
    """Values along an axis, by a tensor of indices of the same rank; Paddle's broadcasting of it is switched off."""
    return f"paddle.take_along_axis({call.x()}, {call.x('index')}, {call.x('dim')}, broadcast=False)"


@rule("aten.one_hot.default")
def one_hot(call: Call) -> str:
    """1 at each index, int64."""
    return f'F.one_hot({call.x()}, {call.x("num_classes")}).astype("int64")'


@rule("aten.meshgrid.indexing", "aten.meshgrid.default")
def meshgrid(call: Call) -> str:
    """Coordinates of a grid, rows first ("ij"), or columns first ("xy", of two)."""
    tensors = call.xs("tensors")
    if call.arguments.get("indexing", "ij") == "ij":
        return f"paddle.meshgrid({', '.join(tensors)})"
    a, b = tensors
    return f"paddle.meshgrid({b}, {a})[::-1]"


def _made(call: Call) -> str:
    return f'dtype="{PADDLE_DTYPES[call.out.dtype]}"'


@rule("aten.arange.default", "aten.arange.start", "aten.arange.start_step")
def arange(call: Call) -> str:
    """From start to end, without end."""
    start, step = call.arguments.get("start", 0), call.arguments.get("step", 1)
    parts = [call.show(start, "start"), call.x("end")] + ([call.show(step, "step")] if step != 1 else [])
    return f"paddle.arange({', '.join(parts)}, {_made(call)})"


@rule("aten.linspace.default")
def linspace(call: Call) -> str:
    """`steps` values from start to end, both in."""
    return f"paddle.linspace({call.x('start')}, {call.x('end')}, {call.x('steps')}, {_made(call)})"


@rule("aten.eye.default")
def eye(call: Call) -> str:
    """The unit matrix."""
    return f"paddle.eye({call.x('n')}, {_made(call)})"


@rule(
    *(
        "aten.zeros.default",
        "aten.ones.default",
        "aten.full.default",
        "aten.new_zeros.default",
        "aten.new_ones.default",
    ),
    *("aten.new_full.default", "aten.empty.memory_format", "aten.new_empty.default"),
    *("aten.zeros_like.default", "aten.ones_like.default", "aten.full_like.default", "aten.empty_like.default"),
)
def full(call: Call) -> str:
    """A tensor of one value; an empty one is of zeros."""
    value = call.arguments.get("fill_value", 1 if "ones" in call.name else 0)
    if "like" in call.name:
        return f"paddle.full_like({call.x()}, {call.show(value)}, {_made(call)})"
    sizes = ", ".join(call.show(size, "size") for size in call["size"])
    return f"paddle.full([{sizes}], {call.show(value)}, {_made(call)})"


@rule("aten.scalar_tensor.default")
def scalar_tensor(call: Call) -> str:
    """A number as a tensor without axes."""
    return f"paddle.to_tensor({call.x('s')}, {_made(call)})"


@rule("aten.fill.Scalar", "aten.fill_.Scalar", "aten.zero_.default")
def fill(call: Call) -> str:
    """Every value replaced by one."""
    return f"paddle.full_like({call.x()}, {call.show(call.arguments.get('value', 0))})"


@rule("aten.copy_.default", "aten.copy.default")
def copy(call: Call) -> str:
    """The values of another tensor, broadcast, in this one's type."""
    source, shape = call.val("src"), call.out.shape
    text = call.cast("src", call.out.dtype)
    if tuple(source.shape) == tuple(shape):
        return text
    return f"{text}.expand([{', '.join(call.size_of(size) for size in shape)}])"


@rule("aten.tril.default", "aten.triu.default")
def triangle(call: Call) -> str:
    """What is not above (below) a diagonal; 0 elsewhere."""
    return f"paddle.{call.name.split('.')[1]}({call.x()}, {call.x('diagonal')})"


@rule("aten.unfold.default")
def unfold(call: Call) -> str:
    """Windows along one axis, as a new last axis."""
    return f"{call.helper('windows')}({call.x()}, {call.x('dimension')}, {call.x('size')}, {call.x('step')})"


@rule("aten.diagonal.default")
def diagonal(call: Call) -> str:
    """A diagonal of two axes, as the last axis."""
    return f"paddle.diagonal({call.x()}, {call.x('offset')}, {call.x('dim1')}, {call.x('dim2')})"
