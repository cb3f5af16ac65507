"""Scores of predictions, through scikit-learn."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import accuracy_score, f1_score, log_loss, matthews_corrcoef


def classification(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """accuracy, macro f1, matthews and loss (mean cross-entropy, nats) of logits (rows, classes)."""
    predicted = logits.argmax(1)
    classes = range(logits.shape[1])
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    shares = np.exp(shifted) / np.exp(shifted).sum(1, keepdims=True)
    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        "f1": float(f1_score(labels, predicted, average="macro", labels=list(classes), zero_division=0.0)),
        "matthews": float(matthews_corrcoef(labels, predicted)),
        "loss": float(log_loss(labels, shares, labels=list(classes))),
    }
