from .learned import learned_schedule as learned_schedule
from .runs import bits_by_term as bits_by_term
from .runs import loss_curve as loss_curve
from .theory import estimators as estimators
from .theory import forward as forward
from .theory import gaussian_bits as gaussian_bits
from .theory import schedules as schedules
from .theory import toy as toy
