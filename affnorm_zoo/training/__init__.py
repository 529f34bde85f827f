from .loop import NonFiniteError as NonFiniteError
from .run import train as train
