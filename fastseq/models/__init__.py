"""Whole models, composed from layers."""

from fastseq.models.language_model import LanguageModel, LanguageModelStream
from fastseq.models.vocabulary import Vocabulary

__all__ = ["LanguageModel", "LanguageModelStream", "Vocabulary"]
