"""Operations: each checks its inputs, chooses a backend and calls it."""

from hetmerge.ops.assignment import AssignmentResult as AssignmentResult
from hetmerge.ops.assignment import linear_sum_assignment as linear_sum_assignment
from hetmerge.ops.assignment import linear_sum_assignment_info as linear_sum_assignment_info
from hetmerge.ops.moments import Moments as Moments
from hetmerge.ops.project import project as project
from hetmerge.ops.segments import align_depth as align_depth
from hetmerge.ops.segments import fixed_depth as fixed_depth
from hetmerge.ops.selection import Gram as Gram
from hetmerge.ops.selection import Selection as Selection
from hetmerge.ops.selection import select as select
from hetmerge.ops.similarity import CKA as CKA
from hetmerge.ops.similarity import cka as cka
from hetmerge.ops.zipping import ZipResult as ZipResult
from hetmerge.ops.zipping import zip_match as zip_match
from hetmerge.ops.zipping import zip_match_info as zip_match_info
from hetmerge.ops.zipping import zip_match_many as zip_match_many
