from .results.query import ParetoFront, Study, Trial, load_study
from .study.run import resume, run
from .trials.record import TrialRecord

__all__ = ["ParetoFront", "Study", "Trial", "TrialRecord", "load_study", "resume", "run"]
