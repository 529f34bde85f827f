from .config import load_paper_config as load_paper_config
from .experiments import EXPERIMENTS as EXPERIMENTS
from .experiments import run_experiment as run_experiment
from .report import write_report as write_report
