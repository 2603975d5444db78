"""Device and precision, known without loading an encoder: open_clip takes seconds to import."""

from __future__ import annotations

import torch

from histoclip_lib.common.errors import HistoCLIPError

PRECISIONS = ("auto", "fp32", "amp")


def choose_compute(device: str = "auto", precision: str = "auto") -> tuple[torch.device, torch.dtype | None]:
    """Return the device and the autocast type (None for float32) that `load_clip` would choose.

    Raises
    ------
    HistoCLIPError
        For an unknown device or precision.
    """
    torch_device = _device(device)
    if precision not in PRECISIONS:
        raise HistoCLIPError(f"precision: {precision!r} is not known. Use one of {', '.join(PRECISIONS)}.")
    if precision == "fp32" or (precision == "auto" and torch_device.type != "cuda"):
        return torch_device, None
    has_bfloat16 = torch_device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    return torch_device, torch.bfloat16 if has_bfloat16 else torch.float16


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise HistoCLIPError(f"device: {device!r} is not a torch device. Use auto, cpu, cuda or cuda:0.") from error
    try:
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:  # no such GPU, or a torch built without this kind of device
        raise HistoCLIPError(f"device: torch sees no {device!r} on this machine. Use auto or cpu.") from error
    return chosen
