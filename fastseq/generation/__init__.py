"""What a model writes: sampling, greedy or beam search, for every model that can say how its decoding begins."""

from fastseq.generation.beam import Hypothesis, beam_search
from fastseq.generation.decoding import Decoding, GenerativeModel
from fastseq.generation.sampling import generate, sample

__all__ = ["Decoding", "GenerativeModel", "Hypothesis", "beam_search", "generate", "sample"]
