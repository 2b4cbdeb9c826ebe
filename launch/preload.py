"""What the forkserver imports once, for all workers. Imported nowhere else.

Whatever the garbage collector tracks by then is set aside: a collection in a worker would write
to every object that it visits, and so copy the memory that the workers share.
"""

import gc

import pipeline.workerprocess  # noqa: F401 - imported for the sake of having been imported
from launch.orphans import mind_orphans

mind_orphans()
gc.collect()
gc.freeze()
