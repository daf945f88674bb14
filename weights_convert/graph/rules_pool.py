"""Rules: pooling, padding, resizing and sampling of images."""

from __future__ import annotations

from weights_convert.graph.registry import Call, Layer, layer, literal, one_or_list, rule


def _window(call: Call, rank: int) -> tuple[str, list[int], list[int], list[int]]:
    kernel = call.pair("kernel_size", rank)
    stride, padding = call.pair("stride", rank, kernel), call.pair("padding", rank)
    text = f"{one_or_list(kernel, 'kernel_size')}, stride={one_or_list(stride, 'stride')}"
    text += f", padding={one_or_list(padding, 'padding')}" if set(padding) != {0} else ""
    return text, kernel, stride, padding


def _rank(call: Call) -> int:
    return int(call.name.split("d.")[0][-1])


def _max_pool_text(call: Call) -> str:
    rank = _rank(call)
    text, kernel, stride, padding = _window(call, rank)
    if set(call.pair("dilation", rank)) != {1}:
        raise call.refuse("with dilation")
    if call["ceil_mode"] and any(k < s + p for k, s, p in zip(kernel, stride, padding, strict=True)):
        raise call.refuse("with ceil_mode and windows that begin beyond the image")
    return text + (", ceil_mode=True" if call["ceil_mode"] else "")


@rule("aten.max_pool1d.default", "aten.max_pool2d.default", "aten.max_pool3d.default")
def max_pool(call: Call) -> str:
    """The largest of each window; padding never is. With ceil_mode both frameworks keep a last, cut window.

    PyTorch leaves out a window that begins in the padding behind; where kernel < stride + padding there could be one,
    and the rule refuses.
    """
    return f"F.max_pool{_rank(call)}d({call.x()}, {_max_pool_text(call)})"


@layer("aten.max_pool2d.default")
def max_pool_layer(call: Call) -> Layer:
    """nn.MaxPool2D."""
    return Layer(f"nn.MaxPool2D({_max_pool_text(call)})")


def _avg_pool_text(call: Call, rank: int) -> str:
    text, kernel, stride, padding = _window(call, rank)
    if call.arguments.get("divisor_override") is not None:
        text += f", divisor_override={literal(call['divisor_override'], 'divisor')}"
    if call["ceil_mode"]:
        if any(k < s + p for k, s, p in zip(kernel, stride, padding, strict=True)):
            raise call.refuse("with ceil_mode and windows that begin beyond the image")
        text += ", ceil_mode=True"
    counts_padding = call["count_include_pad"] and set(padding) != {0}
    return text + (", exclusive=False" if counts_padding else "")


@rule("aten.avg_pool1d.default", "aten.avg_pool2d.default", "aten.avg_pool3d.default")
def avg_pool(call: Call) -> str:
    """The mean of each window; count_include_pad is Paddle's `exclusive=False`, which is not its default."""
    rank = _rank(call)
    return f"F.avg_pool{rank}d({call.x()}, {_avg_pool_text(call, rank)})"


@layer("aten.avg_pool2d.default")
def avg_pool_layer(call: Call) -> Layer:
    """nn.AvgPool2D."""
    return Layer(f"nn.AvgPool2D({_avg_pool_text(call, 2)})")


@rule("aten.adaptive_avg_pool1d.default", "aten.adaptive_avg_pool2d.default", "aten.adaptive_avg_pool3d.default")
def adaptive_avg_pool(call: Call) -> str:
    """The mean of each of output_size bins, which overlap where sizes do not divide; None keeps an axis.

    One bin is a mean per row, then of the rows: Paddle adds up a plane in float32, one value after the other.
    """
    rank, x = _rank(call), call.x()
    sizes = [call["output_size"]] if isinstance(call["output_size"], int) else list(call["output_size"])
    if sizes == [1] * rank:
        return x + "".join(f".mean({axis}, keepdim=True)" for axis in range(-1, -rank - 1, -1))
    sizes = [call.show(size, "output_size") if size is not None else "None" for size in sizes]
    return (
        f"F.adaptive_avg_pool{rank}d({x}, [{', '.join(sizes)}])"
        if rank > 1
        else (f"F.adaptive_avg_pool1d({x}, {sizes[0]})")
    )


@rule("aten.adaptive_max_pool2d.default", "aten.adaptive_max_pool1d.default")
def adaptive_max_pool(call: Call) -> str:
    """The largest of each of output_size bins, and where it is."""
    rank, x = _rank(call), call.x()
    sizes = list(call["output_size"])
    if sizes == [1] * rank and not _second_is_used(call):
        return f"[paddle.max({x}, axis={list(range(-rank, 0))}, keepdim=True), None]"
    shown = ", ".join(call.show(size, "output_size") for size in sizes)
    shown = f"[{shown}]" if rank > 1 else shown
    return f"F.adaptive_max_pool{rank}d({x}, {shown}, return_mask=True)"


def _second_is_used(call: Call) -> bool:
    return any(user.args[1] == 1 for user in call.node.users)


@rule("aten.max_pool2d_with_indices.default")
def max_pool_with_indices(call: Call) -> str:
    """The largest of each window, and where it is."""
    return f"F.max_pool2d({call.x()}, {_max_pool_text(call)}, return_mask=True)"


@rule(
    *("aten.pad.default", "aten.constant_pad_nd.default", "aten.reflection_pad2d.default"),
    "aten.replication_pad2d.default",
)
def pad(call: Call) -> str:
    """Values before and behind axes, the last axis first; negative ones cut off."""
    name = "pad" if "pad" in call.arguments else "padding"
    pads, x, rank = list(call[name]), call.x(), call.val().dim()
    mode = call.arguments.get("mode") or "constant"
    mode = "reflect" if "reflection" in call.name else "replicate" if "replication" in call.name else mode
    numbers = [value for value in pads if isinstance(value, int)]
    if any(value < 0 for value in numbers):
        if len(numbers) != len(pads) or mode != "constant" or any(value > 0 for value in pads):
            raise call.refuse("with negative and other values")
        return f"{x}[{_cut(pads, rank)}]"
    shown = ", ".join(call.show(value, "padding") for value in pads)
    value = call.arguments.get("value")
    options = "" if mode == "constant" else f', mode="{mode}"'
    options += "" if value in (None, 0) else f", value={call.x('value')}"
    if len(pads) == 2 * (rank - 2) and 3 <= rank <= 5:
        return f"F.pad({x}, [{shown}]{options})"
    if mode != "constant":
        raise call.refuse(f"{mode} of {len(pads) // 2} axes of {rank}")
    shown += ", 0" * (2 * rank - len(pads))
    return f"F.pad({x}, [{shown}]{options}, pad_from_left_axis=False)"


def _cut(pads: list[int], rank: int) -> str:
    parts = [":"] * rank
    for index in range(len(pads) // 2):
        before, behind = -pads[2 * index] or "", pads[2 * index + 1] or ""
        parts[rank - 1 - index] = f"{before}:{behind}"
    return ", ".join(parts)


@rule(
    *("aten.upsample_nearest1d.vec", "aten.upsample_nearest2d.vec", "aten.upsample_linear1d.vec"),
    *("aten.upsample_bilinear2d.vec", "aten.upsample_bicubic2d.vec", "aten.upsample_nearest2d.default"),
    *("aten.upsample_bilinear2d.default", "aten.upsample_bicubic2d.default"),
    *("aten._upsample_bilinear2d_aa.vec", "aten._upsample_bicubic2d_aa.vec"),
)
def upsample(call: Call) -> str:
    """Resized to a size, or by factors: whole factors and sizes give one grid; other factors say the grid themselves.

    Without aligned corners pixels are areas (Paddle's align_mode=0); nearest takes floor(index * in / out).
    """
    kind = call.name.split("upsample_")[1]
    mode = next(name for name in ("nearest", "bilinear", "linear", "bicubic") if kind.startswith(name))
    name = "input" if "input" in call.arguments else "self"
    factors, x = call.arguments.get("scale_factors"), call.x(name)
    sizes = call["output_size"]
    options = f', mode="{mode}"'
    if mode != "nearest":
        options += f", align_corners={bool(call['align_corners'])}"
    if "_aa." in call.name:
        options += ", antialias=True"
    if sizes is None and any(float(factor) != int(factor) for factor in factors):
        return f"F.interpolate({x}, scale_factor={literal([float(f) for f in factors], 'scale')}{options})"
    rank = 1 if "1d" in call.name else 2
    shown = [call.size_of(call.out.shape[2 + index]) for index in range(rank)] if sizes is None else None
    shown = shown or [call.show(size, "size") for size in sizes]
    if rank == 1:
        options += ', data_format="NCW"'
    return f"F.interpolate({x}, size=[{', '.join(shown)}]{options})"


@layer("aten.upsample_nearest2d.vec", "aten.upsample_bilinear2d.vec")
def upsample_layer(call: Call) -> Layer | None:
    """nn.Upsample, by whole factors."""
    factors = call["scale_factors"]
    if call["output_size"] is not None or any(float(factor) != int(factor) for factor in factors):
        return None
    mode = "nearest" if "nearest" in call.name else "bilinear"
    options = "" if mode == "nearest" else f", align_corners={bool(call['align_corners'])}"
    return Layer(f'nn.Upsample(scale_factor={one_or_list([int(f) for f in factors], "scale")}, mode="{mode}"{options})')


@rule("aten.grid_sampler.default", "aten.grid_sampler_2d.default")
def grid_sample(call: Call) -> str:
    """Values at the points of a grid from -1 to 1."""
    mode = ("bilinear", "nearest", "bicubic")[call["interpolation_mode"]]
    padding = ("zeros", "border", "reflection")[call["padding_mode"]]
    if mode == "bicubic":
        raise call.refuse("bicubic")
    options = f'mode="{mode}", padding_mode="{padding}", align_corners={bool(call["align_corners"])}'
    return f"F.grid_sample({call.x('input')}, {call.x('grid')}, {options})"


@rule("aten.pixel_shuffle.default")
def pixel_shuffle(call: Call) -> str:
    """(B, C r r, H, W) -> (B, C, H r, W r)."""
    return f"F.pixel_shuffle({call.x()}, {call.x('upscale_factor')})"


@rule("aten.pixel_unshuffle.default")
def pixel_unshuffle(call: Call) -> str:
    """(B, C, H r, W r) -> (B, C r r, H, W)."""
    return f"F.pixel_unshuffle({call.x()}, {call.x('downscale_factor')})"


@rule("aten.channel_shuffle.default", "aten.native_channel_shuffle.default")
def channel_shuffle(call: Call) -> str:
    """Channels read as (groups, channels / groups) and written the other way round."""
    return f"F.channel_shuffle({call.x()}, {call.x('groups')})"


@rule("aten.im2col.default")
def im2col(call: Call) -> str:
    """torch.nn.functional.unfold: windows as columns, (B, C kh kw, L)."""
    names = ("kernel_size", "stride", "padding", "dilation")
    options = [literal(call.pair(name, 2), name) for name in names]
    return f"F.unfold({call.x()}, {', '.join(options)})"


@rule("aten.col2im.default")
def col2im(call: Call) -> str:
    """torch.nn.functional.fold: columns added up where they overlap."""
    sizes = ", ".join(call.show(size, "size") for size in call["output_size"])
    names = ("kernel_size", "stride", "padding", "dilation")
    options = ", ".join(literal(call.pair(name, 2), name) for name in names)
    return f"F.fold({call.x()}, [{sizes}], {options})"
