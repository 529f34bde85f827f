from .metrics import evaluate as evaluate
from .metrics import is_sharded as is_sharded
from .models import check_fit as check_fit
from .models import check_model_name as check_model_name
from .models import expand_names as expand_names
from .models import load_model as load_model
from .table import evaluate_model as evaluate_model
from .table import write_results as write_results
