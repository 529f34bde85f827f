from .errors import HubError as HubError
from .export import export_run as export_run
from .publish import publish as publish
from .pull import load as load
from .pull import pull as pull
