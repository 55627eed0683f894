"""Models, the same on a CPU and on a GPU: device; loading (a base, its adapters, what they generate); detector."""

import logging
import warnings

# Two lines that these libraries print at every start: a kernel that is not used here cannot be downloaded, and one
# of them calls the other by a name that will go.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|trl|accelerate)\b")
