"""Fine-tune the character GPT of configs/char.py to answer: dialogues of the plays, somebody asks and the next speaker answers.

    python -m jaxgpt.train --config configs/char.py
    python -m jaxgpt.train --config configs/chat.py --show_batch    # what is read, and in brackets what is predicted
    python -m jaxgpt.train --config configs/chat.py
    python -m jaxgpt.serve --workdir runs/chat    # talk to it

Cost: 25 s of steps on 2 cores of a shared AMD EPYC with other work (commit 6531706).
Result: on the validation answers 1.785 nats a character before and 1.768 after (a bigram table 2.486). The model has read
these plays: what it learns here is who speaks, and to end a turn.

The loss counts on the answers alone. Own conversations: data.path=FILE.jsonl with messages, or prompt and completion.
"""

from jaxgpt.config import default_config


def get_config():
    config = default_config()
    config.init_from = "runs/char"
    config.model.context_length = 64
    config.model.d_model = 128
    config.model.num_layers = 4
    config.model.num_heads = 4
    config.model.activation = "relu"
    config.data.corpus = "dialogues"
    config.data.template = "play"
    config.data.tokenizer_path = "runs/char/tokenizer.json"
    config.data.batch_size = 16
    config.optim.learning_rate = 3e-4
    config.optim.final_learning_rate_ratio = 0.1
    config.optim.warmup_steps = 20
    config.train.num_steps = 600
    config.train.eval_every = 100
    config.train.eval_tokens = 65_536
    config.train.checkpoint_every = 100
    config.train.sample_prompt = "User:\nWho is there?\n\nAssistant:\n"
    return config
