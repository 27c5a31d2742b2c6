"""LeNet: two convolutions, each with pooling behind it, and a multi-layer perceptron on what they find."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastseq.functional import _check
from fastseq.models.mlp import MLP
from fastseq.nn import Conv2d, MaxPool2d, Module
from fastseq.nn._inputs import checked_size, real_input
from fastseq.nn.activations import activation_named
from fastseq.runtime import generator


class LeNet(Module):
    """Images to classes, after LeNet-5 (LeCun et al. 1998), with ReLU and the greatest of each 2 x 2 in place of tanh and means.

    Convolutions keep the size of the image and each pooling halves it, so that small images are left with something too.

    Parameters
    ----------
    classes : int
    image_size : int or (rows, columns)
        At least 4.
    channels : int
        Of the images: 1 for grey, 3 for colours.
    kernel_size : int
        Of both convolutions.
    widths : sequence of 4 int
        Channels of the two convolutions, units of the two hidden layers.
    activation : str
        The name of a function in `fastseq.functional`.
    dropout : float
        Probability of dropping an element of a hidden layer while training.
    dtype : float32 or float64
    rng : None, int or numpy.random.Generator

    Attributes
    ----------
    conv1, conv2 : Conv2d
    pool : MaxPool2d
    head : MLP

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> model = fs.models.LeNet(10, image_size=8, kernel_size=3)
    >>> model(np.zeros((5, 1, 8, 8))).shape
    (5, 10)
    """

    def __init__(
        self,
        classes: int,
        *,
        image_size: int | tuple[int, int] = 28,
        channels: int = 1,
        kernel_size: int = 5,
        widths: Any = (6, 16, 120, 84),
        activation: str = "relu",
        dropout: float = 0.0,
        dtype: Any = np.float32,
        rng: Any = None,
    ) -> None:
        self.image_size, drawn = _check.sizes("image_size", image_size, 2, 4), generator(rng)
        first, second, *hidden = _check.sizes("widths", tuple(widths), 4, 1)
        activation_named(activation)
        self.activation = activation
        options = {"padding": "same", "dtype": dtype, "rng": drawn}
        self.conv1 = Conv2d(checked_size("channels", channels), first, kernel_size, **options)
        self.conv2 = Conv2d(first, second, kernel_size, **options)
        self.pool = MaxPool2d(2)
        rows, columns = (size // 2 // 2 for size in self.image_size)
        self.head = MLP([second * rows * columns, *hidden, classes], activation, dropout=dropout, dtype=dtype, rng=drawn)

    def forward(self, x: Any) -> Any:
        """Take images (N, channels, rows, columns) to (N, classes)."""
        x = real_input(x, self.conv1.dtype, "x")
        _check.shape("x", x, ("N", self.conv1.in_channels, *self.image_size))
        function = activation_named(self.activation)
        for conv in (self.conv1, self.conv2):
            x = self.pool(function(conv(x)))
        return self.head(x.reshape(len(x), -1))
