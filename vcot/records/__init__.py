"""What the stages hand to each other; every record has a version."""

from vcot.records.metadata import Contract, Mode
from vcot.records.reply import Completion, Score
from vcot.records.sample import Image, Origin, Reason, Rejection, Sample
from vcot.records.shards import Folder, RowCounts, StageMarker, read_samples
