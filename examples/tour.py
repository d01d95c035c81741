# %% [markdown]
# # A tour: from a run to the inside of the model
#
# Every cell (`# %%`) runs by itself in VS Code, PyCharm or Spyder; `jupytext --to notebook examples/tour.py` makes a notebook
# of this file, and `python examples/tour.py` runs it from top to bottom. It needs a run: the default is `runs/char`, of
# `python -m jaxgpt.train --config configs/char.py`; another one is given by the variable TOUR_RUN.

# %%
import dataclasses
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxgpt
from jaxgpt.inspect import interventions
from jaxgpt.inspect.interventions import Edit
from jaxgpt.model.generation import Sampler, generate
from jaxgpt.model.paths import named_leaves
from jaxgpt.runs import metrics_log
from jaxgpt.training.evaluation import own_dataset
from jaxgpt.training.loop import train
from jaxgpt.training.steps import token_losses

run = jaxgpt.load(os.environ.get("TOUR_RUN", "runs/char"))
cfg = run.config.model
print(
    f"step {run.step}: {cfg.num_layers} layers, {cfg.num_heads} heads, d_model {cfg.d_model}, {cfg.vocab_size} tokens"
)

# %% [markdown]
# ## Parameters are a tree of arrays
# Their paths read like the architecture; the letters of shapes are listed at the top of `jaxgpt/model/gpt.py`.

# %%
for path, leaf in named_leaves(run.params):
    if not path.startswith("block_") or path.startswith("block_0"):
        print(f"{path:<40} {leaf.shape}")

# %% [markdown]
# ## Logits
# The model is a function of (params, tokens): `[B, T]` ids in, `[B, T, V]` logits of the next token out. The validation text
# of the run is data that it has not seen.

# %%
dataset = own_dataset(run.workdir, run.config.data, run.tokenizer)
T = cfg.context_length
windows_BT = np.stack([dataset.valid.ids[i * T : i * T + T + 1] for i in range(8)]).astype(np.int32)
tokens_BT, targets_BT = windows_BT[:, :-1], windows_BT[:, 1:]
logits_BTV = run.model.apply({"params": run.params}, tokens_BT)
losses_BT = token_losses(logits_BTV, targets_BT)
probabilities_V = jax.nn.softmax(logits_BTV[0, -1])
best = np.argsort(-probabilities_V)[:5]
print("the text ends:", repr(run.tokenizer.decode(tokens_BT[0, -20:])))
print("next:", {run.tokenizer.token(int(i)): round(float(probabilities_V[i]), 3) for i in best})
print(
    f"loss {losses_BT.mean():.3f} nats a token; log V = {np.log(cfg.num_tokens):.3f} is a guess among all tokens"
)

# %%
prompt = run.tokenizer.decode(tokens_BT[0, : min(8, T)])
print(prompt + generate(run.model, run.params, run.tokenizer, [prompt], 60, sampler=Sampler(0.8))[0][0])

# %% [markdown]
# ## One head
# `jaxgpt.capture` keeps every intermediate of one text: weights `[H, T, S]`, scores, queries, neurons, the residual stream.

# %%
seen = jaxgpt.capture(run, tokens_BT[0])
weights_TS = seen.layers[0].weights_HTS[0]
last = len(weights_TS) - 1
print(
    f"layer 0, head 0, token {last} looks at tokens",
    np.argsort(-weights_TS[last])[:5],
    "with",
    np.sort(weights_TS[last])[::-1][:5],
)
assert np.allclose(weights_TS.sum(axis=-1), 1, atol=1e-5)  # a softmax
for i, layer in enumerate(seen.layers):
    change = np.linalg.norm(layer.after_TD - layer.before_TD, axis=-1) / np.linalg.norm(
        layer.before_TD, axis=-1
    )
    print(f"block {i} changes the stream by {change.mean():.2f} of its length")

# %% [markdown]
# ## Ablate
# Replace the output of each head by its mean, in turn: by how much does the loss rise?

# %%
ablation = interventions.ablate_heads(run.model, run.params, windows_BT)
layer, head = np.unravel_index(ablation.difference.argmax(), ablation.difference.shape)
print(np.round(ablation.difference, 3))
print(f"removing layer {layer}, head {head} hurts most: {ablation.difference.max():+.3f} nats a token")

# Any other edit: turn the first MLP off, and look at the loss.
edits = {("mlp", 0): Edit(scale=0.0)}
edited_BTV = interventions.edited_logits(run.model, run.params, jnp.asarray(tokens_BT), edits)
print(f"without the MLP of block 0: {token_losses(edited_BTV, targets_BT).mean():.3f} nats a token")

# %% [markdown]
# ## Change the config and train 50 steps
# Configs are frozen dataclasses: `dataclasses.replace` makes another. A run is a function of its config; its folder resumes.

# %%
STEPS = int(os.environ.get("TOUR_STEPS", "50"))
other = dataclasses.replace(
    run.config,
    model=dataclasses.replace(cfg, norm="rmsnorm", use_bias=False),
    data=dataclasses.replace(run.config.data, tokenizer_path=str(run.workdir / "tokenizer.json")),
    optim=dataclasses.replace(run.config.optim, warmup_steps=STEPS // 5),
    train=dataclasses.replace(
        run.config.train, num_steps=STEPS, eval_every=STEPS // 2, eval_tokens=4096, checkpoint_every=0, log_every=1,
        sample_tokens=0, report=False,
    ),
    init_from="",
)  # fmt: skip
workdir = Path(os.environ.get("TOUR_OUT", "runs/tour"))
train(other, workdir, restart=workdir.exists())

# %% [markdown]
# ## Plot
# `metrics.jsonl` has a line for each step.

# %%
lines = [line for line in metrics_log.lines(workdir) if line["split"] == "train"]
steps, losses = [line["step"] for line in lines], [line["loss"] for line in lines]
print(f"training loss: {losses[0]:.3f} at step {steps[0]}, {losses[-1]:.3f} at step {steps[-1]}")
try:
    import matplotlib.pyplot as plt
except ImportError:
    print('for the plots: pip install "jaxgpt[plots]"')
else:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    left.plot(steps, losses)
    left.set(xlabel="step", ylabel="training loss (nats per token)", title=f"{STEPS} steps with RMSNorm")
    right.imshow(weights_TS)
    right.set(xlabel="key", ylabel="query", title="attention weights, layer 0, head 0")
    figure.savefig(workdir / "tour.png", dpi=120)
    print("written to", workdir / "tour.png")
