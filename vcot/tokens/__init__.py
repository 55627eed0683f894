"""From Samples to token ids and back: the one package that knows the processor.

    processor = load_processor(folder, min_pixels=…, max_pixels=…)      the base model's own
    contract  = contract_of(processor, mode="multimodal", frame="thousandths", …)   what examples promise
    encoder   = Encoder(processor, contract)
    encoder.example(sample, 0, images, data)      what is learned: ids and labels
    encoder.prompts(samples, images)              what is generated from: the same beginning, to the token
    encoder.conversation(messages)                the same of messages as people send them to a server

torch and transformers are imported by `load_processor`, not before.
"""

from vcot.records import Contract
from vcot.tokens.detokenizer import Detokenizer
from vcot.tokens.encoder import (
    Encoder,
    Measured,
    Message,
    contract_of,
    is_processor_file,
    load_processor,
    native_frame,
    prompt_text,
)
