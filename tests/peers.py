"""torchvision's ResNets, the originals, and weights to compare ours on."""

import types

import ml_collections
import numpy as np


def torchvision_models() -> types.ModuleType:
  """`torchvision.models`, on torch's CPU build as well.

  torchvision's wheel declares its operators in a compiled part, which does not
  load beside a torch without CUDA; then its import asks in vain for these two.
  """
  import torch  # pylint: disable=g-import-not-at-top
  try:
    # Kept on the module: the declaration ends with the object.
    torch.catsdogs_library = torch.library.Library('torchvision', 'DEF')
    for name in ('nms', 'qnms'):
      torch.catsdogs_library.define(
          f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
  except RuntimeError:  # Already declared: the compiled part did load.
    pass
  import torchvision  # pylint: disable=g-import-not-at-top
  return torchvision.models


def model_config(name: str, width: float = 1.0, batch_norm: str = 'batch',
                 dtype: str = 'float32') -> ml_collections.ConfigDict:
  """The part of a config that `models.create_model` asks for."""
  return ml_collections.ConfigDict({
      'name': name, 'width': width, 'batch_norm': batch_norm, 'dtype': dtype})


def random_weights(shapes: dict[str, tuple[int, ...]],
                   seed: int) -> dict[str, np.ndarray]:
  """Weights of no use in others' names, the same on every machine.

  Every tensor matters to the logits, which stay of order one in the deepest
  network. Variances go down to 1e-4, so that BatchNorm's epsilon shows.

  Args:
    shapes: torch's or Keras's shapes by their names.
    seed: of numpy's `RandomState`, whose stream is fixed for good.
  """
  random = np.random.RandomState(seed)
  weights, variances = {}, {}
  # Sorted, so the variance is drawn before the scale of the same layer.
  for name in sorted(shapes, key=lambda name: name.replace('gamma', 'weight')):
    shape = shapes[name]
    module, _, leaf = name.replace('/', '.').rpartition('.')
    uniform = random.uniform(-1.0, 1.0, shape)
    if leaf in ('running_var', 'moving_variance'):
      variances[module] = tensor = 10.0 ** (2.0 * uniform - 2.0)
    elif leaf in ('running_mean', 'moving_mean', 'bias', 'beta'):
      tensor = 0.3 * uniform
    elif len(shape) == 1:  # Of a GroupNorm where there is no variance.
      tensor = (0.75 + 0.25 * uniform) * np.sqrt(variances.get(module, 1.0))
    else:
      # He et al. 2015, as a uniform distribution of that variance.
      inputs = (np.prod(shape[:-1]) if leaf == 'kernel'
                else np.prod(shape[1:]))
      tensor = uniform * np.sqrt(6.0 / inputs)
    weights[name] = tensor.astype(np.float32)
  return weights


def random_pictures(size_px: int, seed: int) -> np.ndarray:
  """Two square pictures, `2 size_px size_px 3`, float32, normalised."""
  random = np.random.RandomState(seed)
  shape = (2, size_px, size_px, 3)
  return random.uniform(-2.0, 2.0, shape).astype(np.float32)


def torchvision_model(name: str, seed: int):
  """torchvision's network of that name on `random_weights`, for evaluation."""
  import torch  # pylint: disable=g-import-not-at-top
  models = torchvision_models()
  with torch.device('meta'):  # No time for an initialisation we replace.
    model = models.get_model(name)
  state = model.state_dict()
  weights = random_weights(
      {key: tuple(tensor.shape) for key, tensor in state.items()
       if not key.endswith('num_batches_tracked')}, seed)
  counts = {key: torch.zeros((), dtype=torch.int64) for key in state
            if key.endswith('num_batches_tracked')}
  tensors = {key: torch.from_numpy(x) for key, x in weights.items()}
  model.load_state_dict({**tensors, **counts}, assign=True)
  return model.eval()


def torchvision_features(model, pictures: np.ndarray) -> dict[str, np.ndarray]:
  """What leaves the stem, each stage, the pooling and the head, channels last.

  Args:
    model: a torchvision ResNet.
    pictures: `batch height width 3`.

  Returns:
    By the names of `models.ResNet.features`, and `logits`.
  """
  import torch  # pylint: disable=g-import-not-at-top
  outputs = {}
  with torch.no_grad():
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    x = model.maxpool(model.relu(model.bn1(model.conv1(x))))
    outputs['stem'] = x
    for i, layer in enumerate(
        (model.layer1, model.layer2, model.layer3, model.layer4), start=1):
      x = layer(x)
      outputs[f'stage{i}'] = x
    outputs['pooled'] = model.avgpool(x)
    outputs['logits'] = model.fc(torch.flatten(outputs['pooled'], 1))
  arrays = {name: x.numpy() for name, x in outputs.items()}
  arrays['pooled'] = arrays['pooled'][:, :, 0, 0]
  return {name: x.transpose(0, 2, 3, 1) if x.ndim == 4 else x
          for name, x in arrays.items()}
