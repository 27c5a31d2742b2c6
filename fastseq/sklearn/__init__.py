"""Estimators that follow scikit-learn's conventions: SequenceClassifier, SequenceTagger and SequenceRegressor.

They fit, predict and score, go into pipelines and grid searches, clone and pickle, on sequences of any lengths. `import fastseq` does
not import them; they need scikit-learn.
"""

try:
    import sklearn  # noqa: F401
except ImportError as error:
    raise ImportError('fastseq.sklearn needs scikit-learn: pip install "fastseq-kernels[sklearn]"') from error

from fastseq.sklearn.classifier import SequenceClassifier
from fastseq.sklearn.regressor import SequenceRegressor
from fastseq.sklearn.tagger import SequenceTagger

__all__ = ["SequenceClassifier", "SequenceRegressor", "SequenceTagger"]
