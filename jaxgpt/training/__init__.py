"""From a config to a trained model: steps, optimizers, the loop, and its guards."""
