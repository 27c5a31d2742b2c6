"""What a model writes: sampling, greedy or beam search, for every model that can say how its decoding begins."""

from fastseq.generation.beam import Hypothesis, beam_search
from fastseq.generation.decoding import Decoding, Generator
from fastseq.generation.sampling import generate, sample

__all__ = ["Decoding", "Generator", "Hypothesis", "beam_search", "generate", "sample"]
