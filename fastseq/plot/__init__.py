"""Pictures, drawn by matplotlib: attention maps, curves of a training, confusion matrices."""

from fastseq.plot.curves import curves
from fastseq.plot.figure import pyplot
from fastseq.plot.maps import attention, attention_grid, confusion_matrix

__all__ = ["attention", "attention_grid", "confusion_matrix", "curves", "pyplot"]
