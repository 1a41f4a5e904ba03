"""The old name of `bpeq.sharding`; it goes with the release after this one."""

import warnings

from bpeq.sharding import *  # noqa: F403

warnings.warn(
    "bpeq.shards is called bpeq.sharding now; the old name goes with the next release",
    DeprecationWarning,
    stacklevel=2,
)
