"""Only the head learns, on features that are computed once.

As logistic regression on what a pretrained backbone says of each photo.
"""

from configs import finetune


def get_config(arg: str | None = None):
  """Returns `finetune`'s config with what differs."""
  config = finetune.get_config(arg)
  config.model.freeze = '^(?!head/)'
  config.model.batch_norm = 'running'
  config.optim.name = 'adamw'
  config.optim.learning_rate = 0.003
  # Without augmentation, a photo's features are the same in each epoch.
  config.augment.crop_scale = (1.0, 1.0)
  config.augment.flip = False
  config.augment.color_jitter = 0.0
  config.train.batch_size = 64
  config.train.epochs = 30.0
  config.train.eval_every_epochs = 5.0
  config.train.log_every_steps = 100
  return config
