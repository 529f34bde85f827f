from .dry_run import dry_run as dry_run
from .epochs import PreemptedError as PreemptedError
from .loop import NonFiniteError as NonFiniteError
from .run import train as train
