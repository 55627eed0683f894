"""One file per dataset: a row in, a Sample or a Rejection out.

A new dataset is one file (its options, and a function that makes a Sample of a row, registered with `@dataset`), its
name in the list below, and one test with three rows. Where its input is neither rows of JSON nor Parquet, a second
function makes them.
"""

# In the order of --help.
from vcot.datasets import viscot, coco, multiple_choice, grounded_reasoning, pope, llava_cot, scenes, samples  # noqa: I001
from vcot.datasets.base import DATASETS, ConversionContext
from vcot.datasets.reading import read, rows_of_shard

__all__ = ["DATASETS", "ConversionContext", "read", "rows_of_shard"]
