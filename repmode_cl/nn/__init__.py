"""The networks: RepMode's U-Net with MoDE blocks and GatRep, and the plain U-Net of the same topology."""

from repmode_cl.nn.architecture import AdditionSpec, Architecture, smallest_size
from repmode_cl.nn.experts import Expert, make_expert
from repmode_cl.nn.gatrep import fuse_kernels, fuse_rows
from repmode_cl.nn.mode_block import ModeBlock
from repmode_cl.nn.multi_head_unet import MultiHeadUNet
from repmode_cl.nn.norm_folding import FoldedUNet, fold_norms, fold_structure
from repmode_cl.nn.plain_unet import PlainUNet
from repmode_cl.nn.repmode_unet import RepModeUNet
from repmode_cl.nn.structure_unet import StructureUNet, structure_seed

__all__ = [
    "AdditionSpec",
    "Architecture",
    "Expert",
    "FoldedUNet",
    "ModeBlock",
    "MultiHeadUNet",
    "PlainUNet",
    "RepModeUNet",
    "StructureUNet",
    "fold_norms",
    "fold_structure",
    "fuse_kernels",
    "fuse_rows",
    "make_expert",
    "smallest_size",
    "structure_seed",
]
