"""Lets torchvision's Python half be imported beside a torch that its compiled half was not built for.

The package registry offers torchvision built for CUDA only. Beside a CPU build of torch its C++ library does
not load, and ``import torchvision`` ends with ``operator torchvision::nms does not exist``, because the package
describes two operators that only the library would have declared. open_clip and transformers need nothing from
that library (they resize and normalise pictures), so declaring the two operators is all that is missing. They
stay without an implementation: who calls ``torchvision.ops.nms`` still gets torchvision's own error.

``cluster/setup.sh`` copies this file into the site-packages of ``.venv``, beside a ``.pth`` file whose one line
calls `install`. Python runs such lines whenever an interpreter starts, so the repair reaches Ray's workers and the
helper processes of vLLM as well. Start-up stays cheap: torch is imported no earlier than torchvision itself would
import it, and where torchvision's library loads nothing is changed.
"""

import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_MISSING_OPERATORS = ("nms", "qnms")
_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_libraries = []  # a torch.library.Library takes its operators with it when it is collected


def declare_missing_operators(package_folders: list[str]) -> bool:
    """Declares torchvision's operators, unless its own library does.

    Args:
        package_folders: the ``__path__`` of the torchvision package.

    Returns:
        Whether operators had to be declared.
    """
    from pathlib import Path

    import torch

    for library in (file for folder in package_folders for file in Path(folder).glob("_C*.so")):
        try:
            torch.ops.load_library(str(library))
        except (ImportError, OSError):  # built for another torch: the case this file is for
            continue
    missing = [name for name in _MISSING_OPERATORS if not hasattr(torch.ops.torchvision, name)]
    if missing:
        declared = torch.library.Library("torchvision", "DEF")
        for name in missing:
            declared.define(name + _SIGNATURE)
        _libraries.append(declared)
    return bool(missing)


class TorchvisionFinder:
    """Finds torchvision where it always was, and declares its operators just before its code runs."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Leaves every other name, and whatever only asks whether torchvision is there, as it was."""
        if name != "torchvision":
            return None
        spec = PathFinder.find_spec(name, None, target)
        if spec is None or spec.loader is None:
            return spec
        run_package = spec.loader.exec_module

        def declare_then_run(module: ModuleType) -> None:
            declare_missing_operators(list(module.__path__))
            run_package(module)

        spec.loader.exec_module = declare_then_run  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Puts the finder first in line; called by the ``.pth`` file when an interpreter starts."""
    if not any(finder is TorchvisionFinder for finder in sys.meta_path):
        sys.meta_path.insert(0, TorchvisionFinder)  # type: ignore[arg-type]
