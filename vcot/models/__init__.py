"""Models: a base with its adapter, loaded the same way on a processor and on a GPU; and what they generate.

    model = load_base(folder, quantization="nf4")        weights from safetensors, never code or pickles
    model = attach_lora(model, r=64, alpha=128, …)       to learn
    model = load_adapter(model, folder)                  to use what was learned
    generate(model, batch, …)                            new tokens, greedily

torch, transformers and peft are imported with this room: import it where a model is needed, not before.
"""

import logging
import warnings

# Two lines that these libraries print at every start: a kernel that is not used here cannot be downloaded, and one
# of them calls the other by a name that will go.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|trl|accelerate)\b")

from vcot.models.device import compute_dtype, device, use_device  # noqa: E402
from vcot.models.generation import generate  # noqa: E402
from vcot.models.loading import (  # noqa: E402
    TARGETS,
    attach_lora,
    is_model_file,
    load_adapter,
    load_base,
    lora_targets,
    weights_dtype,
    whole_model,
)
from vcot.models.positions import positions  # noqa: E402

__all__ = [
    "TARGETS",
    "attach_lora",
    "compute_dtype",
    "device",
    "generate",
    "is_model_file",
    "load_adapter",
    "load_base",
    "lora_targets",
    "positions",
    "use_device",
    "weights_dtype",
    "whole_model",
]
