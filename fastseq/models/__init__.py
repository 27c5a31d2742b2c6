"""Whole models, composed from layers."""

from fastseq.models.forecaster import Forecaster
from fastseq.models.language_model import LanguageModel
from fastseq.models.lenet import LeNet
from fastseq.models.masked_language_model import MaskedLanguageModel, mask_tokens
from fastseq.models.mlp import MLP, Perceptron
from fastseq.models.seq2seq import Seq2Seq
from fastseq.models.sequence_classifier import SequenceClassifier
from fastseq.models.sequence_tagger import SequenceTagger
from fastseq.models.skip_gram import SkipGram
from fastseq.models.subwords import SubwordVocabulary
from fastseq.models.vocabulary import Vocabulary, as_vocabulary

__all__ = [
    "MLP",
    "Forecaster",
    "LanguageModel",
    "LeNet",
    "MaskedLanguageModel",
    "Perceptron",
    "Seq2Seq",
    "SequenceClassifier",
    "SequenceTagger",
    "SkipGram",
    "SubwordVocabulary",
    "Vocabulary",
    "as_vocabulary",
    "mask_tokens",
]
