"""Makes a model of about 45 million parameters, whose training state is more than 500 MB.

python benchmarks/train_model.py SMALL_MODEL OUT      # in the train environment; keeps the tokenizer
"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM


def main() -> None:
    """Write the model."""
    small, out = sys.argv[1:]
    config = AutoModelForCausalLM.from_pretrained(small).config.to_dict()
    wider = {"hidden_size": 768, "intermediate_size": 2304, "num_hidden_layers": 6, "head_dim": 64}
    torch.manual_seed(0)
    kept = {
        name: config[name]
        for name in ("vocab_size", "max_position_embeddings", "eos_token_id", "pad_token_id")
    }
    model = Qwen3ForCausalLM(
        Qwen3Config(**kept, **wider, num_attention_heads=12, num_key_value_heads=6, tie_word_embeddings=True)
    ).to(torch.bfloat16)
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(small).save_pretrained(out)
    print(sum(p.numel() for p in model.parameters()))


if __name__ == "__main__":
    main()
