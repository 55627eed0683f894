"""A detector of the real class that fits into a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def make_owl(folder: Path) -> Path:
    """Fills a folder with a tiny OWLv2 of random weights, tokenizer and all.

    Of any name it finds the same: squares with a quarter of the image's longer side, centred on multiples of that,
    (1, 1) among them. They are its patches, and it knows nothing of what they show.
    """
    import torch
    from transformers import CLIPTokenizer, Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessor, Owlv2Processor

    torch.manual_seed(3)
    letters = [chr(n) for n in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)
    small: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    config = Owlv2Config(
        text_config=small | {"num_attention_heads": 2, "vocab_size": len(words), "max_position_embeddings": 16,
                             "bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 0},
        vision_config=small | {"num_attention_heads": 2, "image_size": 64, "patch_size": 16},
        projection_dim=16,
    )  # fmt: skip
    model = Owlv2ForObjectDetection(config)
    torch.nn.init.zeros_(model.box_head.dense2.weight)  # then each patch says that the thing is where it is
    model.save_pretrained(folder)
    processor = Owlv2Processor(Owlv2ImageProcessor(size={"height": 64, "width": 64}), tokenizer)
    processor.save_pretrained(folder)
    return folder
