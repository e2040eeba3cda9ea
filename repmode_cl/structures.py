"""Names of structures: the twelve of the paper, and the rules for any other name.

A structure is a name everywhere, never an index: an index into a sorted list would renumber every task
when one is added. This module imports nothing heavy, so that commands check names without delay.
"""

from __future__ import annotations

import re
from types import MappingProxyType

from repmode_cl.errors import StructureError

__all__ = ["TWELVE_STRUCTURES", "DATASET_NAMES", "check_new_structure_name", "check_structure_name"]

#: Structure -> the name of its data set in the public label-free collection (paper, Table 1).
DATASET_NAMES = MappingProxyType(
    {
        "microtubule": "alpha_tubulin",
        "actin_filament": "beta_actin",
        "desmosome": "desmoplakin",
        "dna": "dna",
        "nucleolus": "fibrillarin",
        "nuclear_envelope": "lamin_b1",
        "cell_membrane": "membrane_caax_63x",
        "actomyosin_bundle": "myosin_iib",
        "endoplasmic_reticulum": "sec61_beta",
        "golgi_apparatus": "st6gal1",
        "mitochondria": "tom20",
        "tight_junction": "zo1",
    }
)

TWELVE_STRUCTURES = tuple(DATASET_NAMES)

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")

# Keys of torch containers that hold a structure's parameters: an attribute's name cannot be a key there.
# `base` is the key of the shared norms.
_RESERVED = frozenset(
    """
    base add_module append apply bfloat16 buffers call_super_init children clear compile copy cpu cuda
    double dump_patches eval extend extra_repr float forward fromkeys get get_buffer get_extra_state
    get_parameter get_submodule half insert ipu items keys load_state_dict modules mtia named_buffers
    named_children named_modules named_parameters parameters pop popitem register_backward_hook
    register_buffer register_forward_hook register_forward_pre_hook register_full_backward_hook
    register_full_backward_pre_hook register_load_state_dict_post_hook register_load_state_dict_pre_hook
    register_module register_parameter register_state_dict_post_hook register_state_dict_pre_hook
    requires_grad_ set_extra_state set_submodule setdefault share_memory state_dict to to_empty train
    training type update values xpu zero_grad
    """.split()  # noqa: SIM905 - a list of 90 quoted words is no easier to read
)

#: Names of devices, which no file has on Windows, whatever its suffix.
_DEVICES = frozenset(
    ["con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))]
)
#: What an addition may start from besides structures.
_KEYWORDS = ("none", "best")


def check_structure_name(name: str) -> str:
    """Return `name` if it can name a structure.

    Raises
    ------
    StructureError
        If it is not lower-case letters, digits and underscores, beginning with a letter, at most 64
        characters, or is a reserved word.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        # "DNA", "Golgi apparatus" and "tight-junction" are what people write.
        usable = re.sub(r"[ -]", "_", name.lower()) if isinstance(name, str) else ""
        hint = f" (did you mean {usable!r}?)" if _NAME.fullmatch(usable) else ""
        raise StructureError(
            f"structure name {name!r} cannot be used{hint}: a name is 1 to 64 lower-case letters, digits and "
            "underscores and begins with a letter, such as 'nucleolus' or 'tight_junction'"
        )
    if name in _RESERVED:
        raise StructureError(
            f"structure name {name!r} is reserved: choose a longer one, such as '{name}_structure'"
        )
    return name


def check_new_structure_name(name: str) -> str:
    """Return `name` if a structure that is learned from now on can have it.

    Models, manifests and packs of earlier versions may have a name that is refused here, and stay readable.

    Raises
    ------
    StructureError
        As of `check_structure_name`, or if Windows has no file of that name, or it is a keyword of ``--init-from``.
    """
    check_structure_name(name)
    if name in _DEVICES or name in _KEYWORDS:
        why = "files and folders of that name cannot exist on Windows"
        if name in _KEYWORDS:
            why = f"it means something else in --init-from ({', '.join(_KEYWORDS)})"
        raise StructureError(
            f"{name!r} cannot be the name of a new structure: {why}; choose a longer one, such as '{name}_structure'"
        )
    return name
