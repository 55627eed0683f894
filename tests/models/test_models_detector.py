"""The detector, with real classes of random weights: what it finds are boxes of the original, and no code is run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distill.made import HEIGHT, WIDTH, stored
from tests.models.owl import make_owl
from vcot.errors import InputError
from vcot.storage import Store


@pytest.fixture(scope="module")
def owl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    return make_owl(tmp_path_factory.mktemp("owl"))


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Grounding DINO as a folder."""
    torch = pytest.importorskip("torch")
    import transformers as real

    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("dino")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", "red", "disc", "lever"]
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = real.BertTokenizer(str(folder / "vocab.txt"), model_max_length=16)
    swin = real.SwinConfig(
        image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 2], window_size=4,
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    bert = real.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    config = real.GroundingDinoConfig(
        backbone_config=swin, text_config=bert, num_queries=8, encoder_layers=1, decoder_layers=2, d_model=32,
        encoder_ffn_dim=32, decoder_ffn_dim=32, encoder_attention_heads=2, decoder_attention_heads=2, max_text_len=16,
    )  # fmt: skip
    real.GroundingDinoForObjectDetection(config).save_pretrained(folder)
    images = real.GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    real.GroundingDinoProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def test_grounding_dino_speaks_the_same_way(dino: Path, tmp_path: Path) -> None:
    from vcot.models.detector import load_detector

    detector = load_detector(Store(), str(dino))
    detector._threshold = 0.0
    found = detector.find(stored(tmp_path).image, ["red disc", "lever"])
    assert [len(boxes) for boxes in found.values()] == [8, 8]  # its queries, each for one name
    assert all(box.x2 <= WIDTH and box.y2 <= HEIGHT for boxes in found.values() for box in boxes)


def test_boxes_are_in_pixels_of_the_original_and_inside(owl: Path, tmp_path: Path) -> None:
    from vcot.models.detector import load_detector

    detector = load_detector(Store(), str(owl))
    detector._threshold = 0.0  # of random weights, everything
    found = detector.find(stored(tmp_path).image, ["red disc", "lever"])
    assert list(found) == ["red disc", "lever"]
    assert len(found["red disc"]) == 12  # of 16 patches; the last row lies below the image, which is made square
    assert all(box.x2 <= WIDTH and box.y2 <= HEIGHT for boxes in found.values() for box in boxes)
    assert found == detector.find(stored(tmp_path).image, ["red disc", "lever"])
    assert detector.name.startswith("owl")
    detector._threshold = 1.0
    assert detector.find(stored(tmp_path).image, ["lever"]) == {"lever": []}


def test_a_folder_without_a_detector_is_told(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from vcot.models.detector import load_detector

    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(InputError, match="holds no zero-shot detector"):
        load_detector(Store(), str(tmp_path))
