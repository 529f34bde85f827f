from .conversion import export_conversion as export_conversion
from .errors import HubError as HubError
from .export import export_run as export_run
from .index import list_pretrained as list_pretrained
from .index import model_table as model_table
from .publish import publish as publish
from .pull import load as load
from .pull import pull as pull
