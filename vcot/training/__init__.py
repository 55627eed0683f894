"""Training: supervised fine-tuning (sft), its checkpoints in object storage, and what they must hold to go on.

GRPO and GFlowNet will stand beside sft.py and share lessons, checkpoints and losses with it.
"""

import vcot.models  # noqa: F401  first, because it keeps the libraries' lines at import from the log
