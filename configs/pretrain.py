"""Trains from random weights on any class folders (`data.source=folder:...`).

The recipe is the usual one for ResNets on ImageNet: Goyal et al. 2017
(arXiv:1706.02677), with a cosine schedule.
"""

from configs import finetune


def get_config(arg: str | None = None):
  """Returns `finetune`'s config with what differs."""
  config = finetune.get_config(arg or 'resnet18')
  config.data.val_fraction = 0.05
  config.data.image_size = 64
  config.model.width = 0.5
  config.model.weights = 'none'
  config.optim.learning_rate = 0.2
  config.optim.warmup_epochs = 1.0
  config.optim.weight_decay = 5e-4
  config.optim.grad_clip_norm = 0.0
  config.augment.crop_scale = (0.25, 1.0)
  config.augment.label_smoothing = 0.1
  config.train.batch_size = 128
  config.train.epochs = 20.0
  config.train.evaluate_before = False
  config.train.log_every_steps = 50
  return config
