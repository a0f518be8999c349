"""Settings of a policy that are refused before anything is loaded."""

from __future__ import annotations

import torch

from burnish.diffusion.quantization import require_bitsandbytes

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def check_settings(
    train: str,
    rank: int,
    alpha: float,
    dtype: str,
    decode_at_once: int,
    quantization: str,
    offload: bool,
    device: str | torch.device,
    sharded: bool,
) -> None:
    """Raise ValueError if a setting of `Policy.load` is out of range, or misses a package."""
    if train not in ("lora", "full", "none"):
        raise ValueError(f"model.train must be 'lora', 'full' or 'none', not '{train}'")
    if quantization and train == "full":
        raise ValueError("model.quantization needs weights that stay: set model.train to 'lora'")
    if offload and train == "full":
        raise ValueError("model.offload needs weights that stay: set model.train to 'lora'")
    if sharded and (quantization or offload):
        key = "model.quantization" if quantization else "model.offload"
        raise ValueError(f"{key} stores weights that cannot be sharded; leave one out")
    if sharded and not torch.distributed.is_initialized():
        raise ValueError(
            "sharded = True divides weights among the processes of torch.distributed, which has "
            "not been initialised: start several by torchrun"
        )
    if quantization and str(device) != "meta":
        require_bitsandbytes()
    if dtype not in DTYPES:
        raise ValueError(f"model.dtype must be one of {', '.join(DTYPES)}, not '{dtype}'")
    if rank < 1 or not alpha > 0:
        raise ValueError(
            f"model.rank must be at least 1 and model.alpha > 0, not {rank} and {alpha}"
        )
    if decode_at_once < 0:
        raise ValueError(
            f"model.decode_at_once must be 0 (as their size suggests) or more, not {decode_at_once}"
        )
