"""Training: `fit`, the batches that it reads, the callbacks that it calls, checkpoints."""

from fastseq.models.carried_state import CarriedState
from fastseq.training.batches import Batch, Batches, BucketBatches, windows
from fastseq.training.callbacks import Callback, EarlyStopping, Progress
from fastseq.training.character_model import bits_per_character
from fastseq.training.checkpoint import Checkpoint
from fastseq.training.divergence import TrainingDiverged
from fastseq.training.evaluation import evaluate
from fastseq.training.fit import fit
from fastseq.training.history import History
from fastseq.training.pretraining import MaskedPairs
from fastseq.training.skip_gram import SkipGramBatches
from fastseq.training.streams import TextStreams

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
    "SkipGramBatches",
    "TextStreams",
    "TrainingDiverged",
    "bits_per_character",
    "evaluate",
    "fit",
    "windows",
]
