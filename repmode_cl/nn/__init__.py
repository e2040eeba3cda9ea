"""The networks: RepMode's U-Net with MoDE blocks and GatRep, the plain U-Net of the same topology, and the rivals'."""

from repmode_cl.nn.adaptations import AdaptationSpec
from repmode_cl.nn.adapted_unet import AdaptedUNet
from repmode_cl.nn.architecture import AdditionSpec, Architecture, smallest_size
from repmode_cl.nn.condnet import CondNet
from repmode_cl.nn.copied_networks import CopiedMultiHeadUNet, CopiedRepModeUNet
from repmode_cl.nn.dodnet import DoDNet
from repmode_cl.nn.experts import Expert, make_expert
from repmode_cl.nn.gatrep import fuse_kernels, fuse_rows
from repmode_cl.nn.mode_block import ModeBlock
from repmode_cl.nn.multi_head_unet import MultiHeadUNet
from repmode_cl.nn.norm_folding import FoldedUNet, fold_norms, fold_structure
from repmode_cl.nn.packed_unet import PackedUNet
from repmode_cl.nn.pipo_fan import PIPOFAN
from repmode_cl.nn.plain_unet import PlainUNet
from repmode_cl.nn.progressive_unet import ProgressiveUNet
from repmode_cl.nn.repmode_unet import RepModeUNet
from repmode_cl.nn.structure_unet import StructureUNet, structure_seed
from repmode_cl.nn.tgnet import TGNet
from repmode_cl.nn.tsns import TSNs

__all__ = [
    "PIPOFAN",
    "AdaptationSpec",
    "AdaptedUNet",
    "CondNet",
    "CopiedMultiHeadUNet",
    "CopiedRepModeUNet",
    "DoDNet",
    "PackedUNet",
    "ProgressiveUNet",
    "TGNet",
    "TSNs",
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
