"""Whole models, composed from layers."""

from fastseq.models.forecaster import Forecaster
from fastseq.models.language_model import LanguageModel, LanguageModelStream
from fastseq.models.vocabulary import Vocabulary

__all__ = ["Forecaster", "LanguageModel", "LanguageModelStream", "Vocabulary"]
