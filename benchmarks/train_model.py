"""Makes a model of some million parameters with the tokenizer of another, its weights random.

python benchmarks/train_model.py SMALL_MODEL OUT [--hidden-size 768 --num-hidden-layers 6]
    # in the train environment; by default 45 million parameters, whose training state is more than 500 MB
"""

import argparse

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM


def main() -> None:
    """Write the model."""
    parser = argparse.ArgumentParser()
    parser.add_argument("small")
    parser.add_argument("out")
    parser.add_argument("--hidden-size", type=int, default=768, help="A multiple of 128.")
    parser.add_argument("--num-hidden-layers", type=int, default=6)
    given = parser.parse_args()
    config = AutoModelForCausalLM.from_pretrained(given.small).config.to_dict()
    wider = {
        "hidden_size": given.hidden_size,
        "intermediate_size": 3 * given.hidden_size,
        "num_hidden_layers": given.num_hidden_layers,
        "head_dim": 64,
        "num_attention_heads": given.hidden_size // 64,
        "num_key_value_heads": given.hidden_size // 128,
    }
    torch.manual_seed(0)
    kept = {
        name: config[name]
        for name in ("vocab_size", "max_position_embeddings", "eos_token_id", "pad_token_id")
    }
    model = Qwen3ForCausalLM(Qwen3Config(**kept, **wider, tie_word_embeddings=True)).to(torch.bfloat16)
    model.save_pretrained(given.out)
    AutoTokenizer.from_pretrained(given.small).save_pretrained(given.out)
    print(sum(p.numel() for p in model.parameters()))


if __name__ == "__main__":
    main()
