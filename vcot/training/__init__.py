"""Training: supervised fine-tuning (sft), its checkpoints in object storage, and what they must hold to go on.

GRPO and GFlowNet will stand beside sft.py and share data, checkpoints and trainer with it. `config` knows no
torch.
"""
