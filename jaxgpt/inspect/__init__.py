"""Look inside a model: capture a forward pass, analyse it, write the report page.

subject        a run, its text and the probe text
capture        every intermediate of a forward pass; `capture.capture(cfg, params, tokens_T)`
analysis       NumPy functions of a capture: ledger, logit lens, losses
interventions  ablate heads, patch activations
heads          head statistics over many texts
health         statistics of training, and what is unusual in them
payload        all numbers of a report; its parts are in summary, forward, attention, embeddings (with word_lists),
               contexts, neurons, findings, methods, compare; plain rounds them for JSON
page           the HTML of a payload, with static_tables and assets/
write          report.json and report.html
explanation    the text of `jaxgpt.explain`; explained opens its model, explanation_json is its JSON
service        the endpoints of `jaxgpt.serve`; server is its network part, playground its page
activation_files  activations of a text in files: `jaxgpt.inspect.activations`; probes and sparse read them
"""


def __getattr__(name: str):
    if name == "activations":  # lazy: importing a part of the room does not pay for JAX
        from jaxgpt.inspect.activation_files import activations

        return activations
    raise AttributeError(f"module 'jaxgpt.inspect' has no attribute {name!r}")
