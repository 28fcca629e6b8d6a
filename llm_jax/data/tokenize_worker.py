"""A worker process that tokenises shards: python -m llm_jax.data.tokenize_worker FOLDER BEGIN:END ..."""

import os
import sys
from pathlib import Path

from llm_jax.core.errors import EXIT_USER_ERROR, UserError
from llm_jax.data.token_cache import tokenize_shards

if __name__ == "__main__":
    ranges = [tuple(map(int, argument.split(":"))) for argument in sys.argv[2:]]
    try:
        tokenize_shards(Path(sys.argv[1]), ranges, parent=os.getppid())  # type: ignore[arg-type]
    except UserError as error:  # its parent raises it
        print(error, file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
