"""Makes a small base model from nothing, for the demo and the tests: tokenizer trained, weights random.

    python -m train_jobs.engine.demo_model --rows ROWS.jsonl --out FOLDER     # in the train environment

A Qwen3 architecture of 2.2M parameters that learns 100 questions and answers by heart in half a minute on
two CPU cores.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

VOCAB_SIZE = 4096
SEED = 0
MAX_LENGTH = 1024

END_OF_TEXT, START_OF_TURN, END_OF_TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

# Renders what LLaMA-Factory's template qwen3_nothink renders: the model must be asked as it was taught.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a chat template and Qwen's special tokens.

    Args:
        texts: What to learn from; any other text still encodes, into more tokens.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END_OF_TEXT, START_OF_TURN, END_OF_TURN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END_OF_TURN,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[START_OF_TURN],
        model_max_length=MAX_LENGTH,
        chat_template=CHAT_TEMPLATE,
    )


def new_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A Qwen3 model with random weights, the same ones every time."""
    torch.manual_seed(SEED)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = Qwen3Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        dtype=torch.bfloat16,
        **ids,
    )
    model = Qwen3ForCausalLM(config).to(torch.bfloat16)
    # Without it a server does not know where an answer ends. Greedy: the demo compares exact answers.
    model.generation_config = GenerationConfig(do_sample=False, **ids)
    return model


def texts(rows: Path) -> Iterator[str]:
    """Every text value of every row of a JSON-lines file."""
    with rows.open() as lines:
        for line in lines:
            yield from (value for value in json.loads(line).values() if isinstance(value, str))


def main() -> None:
    """Write a model folder that LLaMA-Factory trains and vLLM serves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument(
        "--rows", type=Path, required=True, help="JSON lines whose text the tokenizer learns from"
    )
    parser.add_argument("--out", type=Path, required=True, help="the model's folder; made if it is missing")
    options = parser.parse_args()
    tokenizer = train_tokenizer(texts(options.rows))
    tokenizer.save_pretrained(options.out)
    new_model(tokenizer).save_pretrained(options.out)
    size_bytes = sum(file.stat().st_size for file in options.out.iterdir())
    print(f"wrote {options.out}: {VOCAB_SIZE} tokens, {size_bytes} bytes")


if __name__ == "__main__":
    main()
