"""Built-in tasks with real data, and what a task of one's own may use."""

from autocompress.tasks.images import ImageTensors
from autocompress.tasks.shared import shared_arrays
from autocompress.tasks.tensors import InputTensors

__all__ = ["ImageTensors", "InputTensors", "shared_arrays"]
