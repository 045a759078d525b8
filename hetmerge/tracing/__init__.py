"""Find the spaces of a model: sets of tensor axes that share one ordering of features."""

from hetmerge.tracing.build import trace as trace
from hetmerge.tracing.exporting import export as export
from hetmerge.tracing.expr import Concat as Concat
from hetmerge.tracing.expr import Expr as Expr
from hetmerge.tracing.expr import Leaf as Leaf
from hetmerge.tracing.expr import Product as Product
from hetmerge.tracing.graph import Occurrence as Occurrence
from hetmerge.tracing.graph import Space as Space
from hetmerge.tracing.graph import SpaceGraph as SpaceGraph
