"""Agreement among the processes of a training. All must call these together; a single process agrees with itself."""

import jax
import numpy as np
from jax.experimental import multihost_utils


def any_process(flag: bool) -> bool:
    """Tell whether the flag is set in any process."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def from_first_process(number: int) -> int:
    """Return, in every process, the number that the first one passed."""
    if jax.process_count() == 1:
        return number
    high, low = divmod(number, 2**30)  # JAX would truncate numbers beyond int32
    high, low = multihost_utils.broadcast_one_to_all(np.asarray([high, low], np.int32))
    return int(high) * 2**30 + int(low)
