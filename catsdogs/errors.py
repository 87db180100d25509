"""The one exception that means: what the person gave us was wrong."""


class UserError(Exception):
  """A wrong config, data set, weights file or checkpoint.

  Its message is one line that names the thing and the mend. `launch.py` prints
  it on stderr and exits with status 2; any other exception is a fault of ours
  and keeps its traceback.
  """
