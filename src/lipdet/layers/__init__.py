"""1-Lipschitz building blocks on torch alone, each a drop-in for the torch layer it replaces."""

from lipdet.layers.activations import Abs, Householder, MaxMin
from lipdet.layers.base import ConstructedWeight, dirac_, orthogonal_
from lipdet.layers.conv import LipschitzConv2d
from lipdet.layers.fold import fold
from lipdet.layers.gain import GainProfile, LayerGain, gain_profile
from lipdet.layers.normalised import (
    AOLConv2d,
    L2NormConv2d,
    OrthonormalConv2d,
    SpectralConv2d,
    UnitNormConv2d,
)
from lipdet.layers.orthogonal import BCOPConv2d, OrthogonalConv1x1
from lipdet.layers.residual import CPLBlock, FoldedResidual, ResidualBlock, SLLBlock
from lipdet.layers.resizing import (
    DisjointMaxPool2d,
    DropChannels,
    ScaledAvgPool2d,
    SpaceToDepth,
    ZeroPadChannels,
)
from lipdet.norms import conv_norm_bound, matrix_norm_bound, reshaped_norm_bound

__all__ = [
    "AOLConv2d",
    "Abs",
    "BCOPConv2d",
    "CPLBlock",
    "ConstructedWeight",
    "DisjointMaxPool2d",
    "DropChannels",
    "FoldedResidual",
    "GainProfile",
    "Householder",
    "L2NormConv2d",
    "LayerGain",
    "LipschitzConv2d",
    "MaxMin",
    "OrthogonalConv1x1",
    "OrthonormalConv2d",
    "ResidualBlock",
    "SLLBlock",
    "ScaledAvgPool2d",
    "SpaceToDepth",
    "SpectralConv2d",
    "UnitNormConv2d",
    "ZeroPadChannels",
    "conv_norm_bound",
    "dirac_",
    "fold",
    "gain_profile",
    "matrix_norm_bound",
    "orthogonal_",
    "reshaped_norm_bound",
]
