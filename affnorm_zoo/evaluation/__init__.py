from .metrics import evaluate as evaluate
from .models import check_model_name as check_model_name
from .models import load_model as load_model
