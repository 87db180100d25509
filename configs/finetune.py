"""Fine-tunes a ResNet on photos of cats and dogs, or on any folder: 2 epochs.

The other configs hold only what differs from this one. Any field can be set on
the command line: `--config.train.batch_size=64`.
"""

import ml_collections
from ml_collections import config_dict


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the config, locked.

  Args:
    arg: what follows a colon in `--config=configs/finetune.py:resnet50`: the
      model's name.
  """
  config = ml_collections.ConfigDict()
  # Decides the new parameters, the order of the photos and all augmentation.
  config.seed = 0

  data = config.data = ml_collections.ConfigDict()
  # 'bundled' (drawn pictures), 'folder:PATH' or 'tfds:NAME'; 'auto':
  # 'tfds:cats_vs_dogs' where it is prepared or can be downloaded, else
  # 'bundled'.
  data.source = 'auto'
  # The feature that holds the label, where a TFDS set has several.
  data.label_key = 'auto'
  # TFDS splits, such as 'train[:80%]'; empty: the source's own.
  data.train_split = ''
  # Likewise; both are set, or none.
  data.val_split = ''
  # Where a folder has no split of its own: the share that validates, chosen
  # in each class by a hash of the file's path.
  data.val_fraction = 0.2
  # Share of the training and of the validation photos that is used, at least
  # one of each class.
  data.sample_fraction = 1.0
  # Height and width in pixels that the model sees; unset: 160 with the bundled
  # weights and with none (128 on the drawn pictures), else what the weights
  # were trained with, mostly 224.
  data.image_size = config_dict.placeholder(int)
  # Host memory in GiB that decoded photos may take; what does not fit is
  # decoded anew in each epoch.
  data.cache_gib = 2.0

  model = config.model = ml_collections.ConfigDict()
  # 'resnet18' ... 'resnet152', 'resnext50_32x4d', 'resnet50d', 'resnet50v2',
  # 'bit_r50x1', ... (catsdogs/architectures.py); 'auto': a ResNet-18 of half
  # width with the bundled weights and with none, else what the weights are of,
  # or ResNet-50.
  model.name = arg or 'auto'
  # Multiplies the channels of every layer.
  model.width = 1.0
  # 'bundled', 'none', 'torchvision:IMAGENET1K_V2', 'timm:a1_in1k',
  # 'keras:imagenet', 'bit:BiT-M-R50x1', 'hf:OWNER/NAME', a file of such
  # weights, or the workdir of another run; 'auto': torchvision's where they are
  # cached or can be downloaded, else 'bundled'.
  model.weights = 'auto'
  # Regex over parameter paths, such as '^(stem|stage1)/', that do not learn.
  model.freeze = ''
  # What normalises while training: the statistics of the 'batch', or the
  # 'running' ones that came with the weights.
  model.batch_norm = 'batch'
  # Of the computation; parameters, statistics and logits stay float32.
  # 'auto': bfloat16 on GPU and TPU, float32 on CPU.
  model.dtype = 'auto'

  optim = config.optim = ml_collections.ConfigDict()
  # 'sgd' (with Nesterov momentum 0.9) or 'adamw'.
  optim.name = 'sgd'
  # The peak, after the warm-up.
  optim.learning_rate = 0.02
  # How it falls from there: 'cosine' or 'linear', to zero, or 'constant'.
  optim.schedule = 'cosine'
  # Epochs in which the learning rate rises to its peak.
  optim.warmup_epochs = 0.2
  # Of kernels alone: biases and BatchNorm are spared.
  optim.weight_decay = 1e-4
  # ((regex over parameter paths, factor), ...): the first that matches
  # multiplies the learning rate, as in (('^head/', 10.0),).
  optim.lr_mults = ()
  # The gradient's global norm is clipped to this; 0 does not clip.
  optim.grad_clip_norm = 1.0
  # Parts in which a batch goes through the model, where memory is short; the
  # update is the same, but for BatchNorm's statistics of the 'batch'.
  optim.accumulate_steps = 1
  # Decay of the running average of the parameters that is evaluated and
  # saved as the model; 0 evaluates the parameters themselves.
  optim.ema_decay = 0.0

  augment = config.augment = ml_collections.ConfigDict()
  # Range of the share of the photo's area that a random crop shows.
  augment.crop_scale = (0.4, 1.0)
  # Mirrors every second photo.
  augment.flip = True
  # Brightness, contrast and saturation vary by up to this share.
  augment.color_jitter = 0.2
  # Beta parameter of mixup, 0 for none.
  augment.mixup = 0.0
  # Likewise of cutmix; with both, each batch draws one of them.
  augment.cutmix = 0.0
  # Share of the target that is spread over all classes.
  augment.label_smoothing = 0.0

  train = config.train = ml_collections.ConfigDict()
  # Photos a step, over all devices.
  train.batch_size = 32
  # Passes over the training photos; a fraction is fine.
  train.epochs = 2.0
  # Evaluates before the first step as well, for the comparison.
  train.evaluate_before = True
  # Steps from one line on the console and in metrics.csv to the next.
  train.log_every_steps = 10
  # Epochs from one evaluation to the next; there is one at the end.
  train.eval_every_epochs = 1.0
  # Steps from one checkpoint to the next, beside one before each evaluation.
  train.checkpoint_every_steps = 200
  # The latest checkpoints that are kept, beside the best one.
  train.keep = 2
  # Spreads parameters and optimizer state over the devices, where they are too
  # large for one; the steps are the same, and slower.
  train.fsdp = False

  return config.lock()
