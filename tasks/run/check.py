"""Is params.yaml as it should be? Each stage begins with `python -m tasks.run.check`, before it imports torch."""

import sys

from tasks.run.settings import ParameterError, load_settings

if __name__ == "__main__":
    try:
        load_settings()
    except ParameterError as error:
        sys.exit(str(error))
