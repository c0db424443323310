"""What is refused at the doors of the objective: tensors whose shapes do not fit, before they broadcast in silence.

Shapes are known on the host, so nothing waits for a GPU.
"""

from torch import Tensor


def check_same_shape(*, least_axes: int = 0, **tensors: Tensor | None) -> None:
    """Refuse tensors that differ in shape; `None` is left out.

    >>> import torch
    >>> check_same_shape(student=torch.zeros(5), teacher=torch.zeros(3, 5))
    Traceback (most recent call last):
    ValueError: student is of shape [5] and teacher of shape [3, 5]; they must have the same shape
    >>> check_same_shape(least_axes=1, logps_NV=torch.tensor(0.0))
    Traceback (most recent call last):
    ValueError: logps_NV is of shape []; it needs at least 1 axis

    Args:
        least_axes: the number of axes that each has at least.
        tensors: by the names of the arguments.

    Raises:
        ValueError: two shapes differ, or there are too few axes.
    """
    given = [(name, tensor) for name, tensor in tensors.items() if tensor is not None]
    first, expected = given[0]
    if expected.ndim < least_axes:
        needs = f"{least_axes} axis" if least_axes == 1 else f"{least_axes} axes"
        raise ValueError(f"{first} is of shape {list(expected.shape)}; it needs at least {needs}")
    for name, tensor in given[1:]:
        if tensor.shape != expected.shape:
            raise ValueError(
                f"{first} is of shape {list(expected.shape)} and {name} of shape {list(tensor.shape)}; "
                "they must have the same shape"
            )


def check_rows(rows: Tensor, num_axes: int = 1, **tensors: Tensor | None) -> None:
    """Refuse tensors whose first axes are not all the axes of `rows`, followed by `num_axes` of their own.

    >>> import torch
    >>> check_rows(torch.zeros(3), 1, logps_NV=torch.zeros(2, 7))
    Traceback (most recent call last):
    ValueError: logps_NV is of shape [2, 7] for tokens of shape [3]; it needs [3] and 1 axis more

    Args:
        rows: one entry for each token.
        num_axes: the number of axes after those of `rows`.
        tensors: by the names of the arguments.

    Raises:
        ValueError: a tensor has other rows, or another number of axes.
    """
    for name, tensor in tensors.items():
        if tensor is None or (tensor.ndim == rows.ndim + num_axes and tensor.shape[: rows.ndim] == rows.shape):
            continue
        more = f" and {num_axes} axis more" if num_axes == 1 else ""
        raise ValueError(
            f"{name} is of shape {list(tensor.shape)} for tokens of shape {list(rows.shape)}; "
            f"it needs {list(rows.shape)}{more}"
        )
