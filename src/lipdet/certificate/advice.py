"""What to use in place of layers that enlarge a Lipschitz bound, in the names of lipdet.layers."""

from __future__ import annotations

_CONVOLUTION = "AOLConv2d or BCOPConv2d: norm 1 by construction"
_POOL = "DisjointMaxPool2d (stride = kernel size), or SpaceToDepth: norm 1"
_MEAN = "ScaledAvgPool2d: norm 1"
_RESIZE = "pixel_shuffle, which repeats no pixel: norm 1"
_INSTEAD = {
    "pixels": "none: give the network pixels in [0, 1], and let its first bias do the shift",
    "Conv2d": _CONVOLUTION,
    "OrthogonalConv1x1": "OrthogonalConv1x1: norm 1 by construction",
    "BatchNorm2d": "none: 1-Lipschitz layers keep a signal's size (layers.gain_profile)",
    "Linear": "OrthogonalConv1x1 on a 1×1 map: norm 1 by construction",
    **dict.fromkeys(("MaxPool2d", "max_pool2d"), _POOL),
    **dict.fromkeys(("AvgPool2d", "avg_pool2d"), _MEAN),
    **dict.fromkeys(("Upsample", "interpolate"), _RESIZE),
    **dict.fromkeys(("ReflectionPad2d", "ReplicationPad2d", "CircularPad2d", "pad"), "ZeroPad2d"),
    **dict.fromkeys(("add", "sub"), "SLLBlock: a residual block of norm 1; or the branches' mean"),
    **dict.fromkeys(("cat", "stack"), "bounds of each output alone; or branches scaled by √share"),
    **dict.fromkeys(("mul", "truediv", "div"), "a constant of at most 1"),
    "LeakyReLU": "MaxMin: norm 1, and it keeps gradients",
    "FoldedResidual": "SLLBlock: norm 1 by construction",
}
_OTHERWISE = "a layer of lipdet.layers, all of norm 1"


def advice(kind: str, branches: int = 1) -> str:
    """What to use instead of a layer or function that has a bound above 1."""
    if branches > 1 and kind in ("mul", "div", "truediv"):
        return obstacle_advice("a product of two maps")
    return _INSTEAD.get(kind, _OTHERWISE)


def obstacle_advice(reason: str) -> str:
    """What to do about an operation that has no bound, by the reason that its rule gives."""
    if "product of two maps" in reason:
        return "no gates (squeeze and excitation, attention): their product grows without limit"
    if "dividing by a map" in reason:
        return "no normalisation by the picture's own statistics"
    if "batch statistics" in reason or "training mode" in reason:
        return "call eval() first"
    return "MaxMin, Abs or ReLU for activations, AvgPool2d or ScaledAvgPool2d for means"
