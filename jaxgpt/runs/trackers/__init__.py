"""Experiment trackers: other programs that show a run's metrics.

tracker      the interface of all trackers, and the table of their names
feed         sends a run's log to one tracker, in a thread of its own
tensorboard  TensorBoard events in the run's folder
wandb        Weights & Biases
trackio      Trackio
mlflow       MLflow
"""
