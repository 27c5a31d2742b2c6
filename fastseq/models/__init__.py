"""Whole models, composed from layers."""

from fastseq.models.forecaster import Forecaster
from fastseq.models.language_model import CarriedState, LanguageModel
from fastseq.models.vocabulary import Vocabulary, as_vocabulary

__all__ = ["CarriedState", "Forecaster", "LanguageModel", "Vocabulary", "as_vocabulary"]
