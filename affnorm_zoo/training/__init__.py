from .dry_run import dry_run as dry_run
from .engine import train as train
from .epochs import PreemptedError as PreemptedError
from .loop import NonFiniteError as NonFiniteError
