"""The full run on 1/20 of the photos, for one epoch: does it all work?"""

from configs import finetune


def get_config(arg: str | None = None):
  """Returns `finetune`'s config with what differs."""
  config = finetune.get_config(arg)
  config.data.sample_fraction = 1 / 20
  config.train.epochs = 1.0
  config.train.log_every_steps = 1
  return config
