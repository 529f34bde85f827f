from .dry_run import dry_run as dry_run
from .loop import NonFiniteError as NonFiniteError
from .run import PreemptedError as PreemptedError
from .run import train as train
