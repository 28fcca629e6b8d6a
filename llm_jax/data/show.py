"""The name of the command `python -m llm_jax.data.show`, which is `llm_jax.run.show_data`."""

import sys

from llm_jax.run.show_data import main

if __name__ == "__main__":
    sys.exit(main())
