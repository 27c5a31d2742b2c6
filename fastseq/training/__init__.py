"""Training: `fit`, the batches that it reads, the callbacks that it calls, checkpoints."""

from fastseq.training.batches import Batch, Batches, BucketBatches, windows
from fastseq.training.callbacks import Callback, EarlyStopping, Progress
from fastseq.training.checkpoint import Checkpoint
from fastseq.training.divergence import TrainingDiverged
from fastseq.training.fit import evaluate, fit
from fastseq.training.history import History
from fastseq.training.pretraining import MaskedPairs
from fastseq.training.streams import CarriedState, TextStreams, sequence_cross_entropy

__all__ = [
    "Batch",
    "Batches",
    "BucketBatches",
    "Callback",
    "CarriedState",
    "Checkpoint",
    "EarlyStopping",
    "History",
    "MaskedPairs",
    "Progress",
    "TextStreams",
    "TrainingDiverged",
    "evaluate",
    "fit",
    "sequence_cross_entropy",
    "windows",
]
