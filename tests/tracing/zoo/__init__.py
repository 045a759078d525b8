"""Models for the tests of tracing."""

from zoo.case import Case as Case
from zoo.case import prepared as prepared
from zoo.language import TRANSFORMERS as TRANSFORMERS
from zoo.nets import NETS as NETS
from zoo.ops import OPS as OPS

ALL = [*NETS, *OPS, *TRANSFORMERS]
